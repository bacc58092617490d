"""What a record means: one small reader per shape of counselling data, and how sure each is that a file is its own.

Knows no files. A reader turns a record into a `Draft`; what it can't use raises `Unreadable` with a reason code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from warmline.corpus.rows import Row, Unreadable
from warmline.messages import Conversation, Message, Role

Columns = Mapping[str, str]


@dataclass(slots=True)
class Draft:
    """A conversation as the source has it: turns not yet cleaned, no id, no provenance."""

    turns: list[tuple[Role, str]]
    theme: str = ""
    group: str = ""
    """Records of one source with the same value stay on one side of a split."""
    labels: dict[str, str] = field(default_factory=dict)
    whole: Conversation | None = None
    """Set when the record is one of our own conversations and keeps its id, labels and provenance."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The first records of a file, as seen by the readers when they say how well they fit."""

    container: str
    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Column or key names of the first record."""
        first = self.values[0] if self.values else None
        return tuple(first) if isinstance(first, dict) else ()

    def has(self, *names: str) -> bool:
        lower = {name.lower() for name in self.names}
        return all(name.lower() in lower for name in names)

    def texts(self, name: str) -> list[str]:
        found = [v.get(name) for v in self.values if isinstance(v, dict)]
        return [text for text in found if isinstance(text, str)]


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of data. `fits` is 0 for no, up to 100 for a shape that nothing else has."""

    name: str
    title: str
    fits: Callable[[Sample], int]
    read: Callable[[Any, Columns], Draft] | None = None
    gather: Callable[[Iterator[Row], Columns, Callable[[Row, str], None]], Iterator[tuple[Row, Draft]]] | None = None
    """For shapes in which one conversation takes several records, or one record holds several conversations."""
    roles: tuple[str, ...] = ()
    """Names that `--columns` may map for this shape."""


_USER = (
    *("user", "human", "client", "patient", "visitor", "seeker", "usr", "person", "caller", "student", "customer"),
    *("help-seeker", "helpseeker", "questioner", "speaker a", "me", "q", "question", "prompter", "teen", "child", "v"),
)
_ASSISTANT = (
    *("assistant", "counsellor", "counselor", "therapist", "gpt", "bot", "chatbot", "ai", "model", "supporter", "sys"),
    *("listener", "doctor", "psychologist", "helper", "volunteer", "agent", "coach", "speaker b", "a", "answer", "r"),
    *("psychiatrist", "clinician", "t", "c-therapist", "mentor"),
)
ROLE_OF: dict[str, Role] = {"system": "system"}
"""What speakers are called in public data, in lower case, and which of our three roles that is."""
ROLE_OF.update((name, "user") for name in _USER)
ROLE_OF.update((name, "assistant") for name in _ASSISTANT)


def role_of(name: Any) -> Role:
    if not isinstance(name, str):
        raise Unreadable("no-speaker")
    role = ROLE_OF.get(name.strip().strip("<>[]:*").lower())
    if role is None:
        raise Unreadable("unknown-speaker")
    return role


def text_of(value: Any, *, optional: bool = False) -> str:
    """The text of a cell; OpenAI's list of parts is joined."""
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        return "\n".join(text_of(part["text"]) for part in value)
    raise Unreadable("missing-text" if value is None else "wrong-type")


def record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable("wrong-type")
    return value


def _get(value: dict[str, Any], *names: str) -> Any:
    """The first of these keys that is there, whatever its case."""
    for name in names:
        if name in value:
            return value[name]
    lower = {str(key).lower(): key for key in value}
    for name in names:
        if name.lower() in lower:
            return value[lower[name.lower()]]
    return None


def _label(value: Any) -> str:
    """A short fact; long or nested values are not facts and are left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:60] if isinstance(value, (str, int, float)) else ""


# --- our own, and lists of messages ---------------------------------------------------------------------------------


def _own(value: Any, columns: Columns) -> Draft:
    row = record(value)
    if "messages" not in row and isinstance(row.get("text"), str):
        return _text_column(row, columns)
    try:
        whole = Conversation.from_json(row)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("wrong-type") from None
    if not all(isinstance(v, str) for v in (whole.theme, whole.group, *whole.labels, *whole.labels.values())):
        raise Unreadable("wrong-type")
    return Draft([(m.role, m.content) for m in whole.messages], whole.theme, whole.group, whole.labels, whole)


def _messages(value: Any, columns: Columns) -> Draft:
    row = record(value)
    turns = _get(
        row, columns.get("messages", "messages"), "conversation", "conversations", "turns", "dialogue", "dialog"
    )
    if not isinstance(turns, list):
        raise Unreadable("no-messages")
    found: list[tuple[Role, str]] = []
    for turn in turns:
        turn = record(turn)
        name = _get(turn, "role", "from", "speaker", "author", "interlocutor")
        if isinstance(name, str) and name.lower() in ("tool", "function"):
            raise Unreadable("tool-call")
        content = _get(turn, "content", "value", "text", "utterance", "message")
        found.append((role_of(name), text_of(content)))
    labels = row.get("labels") if isinstance(row.get("labels"), dict) else {}
    facts = {key: row[key] for key in ("is_crisis", "risk", "risk_level") if key in row} | (labels or {})
    return Draft(
        found,
        theme=_label(_get(row, columns.get("theme", "theme"), "topic", "category")),
        group=_label(_get(row, columns.get("group", "group"))),
        labels={str(k): text for k, v in facts.items() if k != "notes" and (text := _label(v))},
    )


def _is_turn_list(value: Any, *keys: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and all(k in value[0] for k in keys)


def _fits_own(sample: Sample) -> int:
    return 95 if sample.has("id", "messages", "provenance") else 0


def _fits_messages(sample: Sample) -> int:
    for name in ("messages", "conversation", "conversations", "turns", "dialogue", "dialog"):
        if any(isinstance(v, dict) and _is_turn_list(v.get(name), "role", "content") for v in sample.values):
            return 90
    return 0


def _fits_sharegpt(sample: Sample) -> int:
    for name in ("conversations", "conversation", "items"):
        if any(isinstance(v, dict) and _is_turn_list(v.get(name), "from", "value") for v in sample.values):
            return 90
    return 0


def _esconv(value: Any, columns: Columns) -> Draft:
    row = record(value)
    dialog = row.get("dialog")
    if not isinstance(dialog, list):
        raise Unreadable("no-messages")
    turns = [(role_of(_get(record(t), "speaker")), text_of(_get(record(t), "text", "content"))) for t in dialog]
    survey = row.get("survey_score")
    seeker = survey.get("seeker", {}) if isinstance(survey, dict) else {}
    facts = {"emotion": row.get("emotion_type"), "experience": row.get("experience_type")}
    if isinstance(seeker, dict):
        facts |= {"before": seeker.get("initial_emotion_intensity"), "after": seeker.get("final_emotion_intensity")}
    return Draft(
        turns, theme=_label(row.get("problem_type")), labels={k: t for k, v in facts.items() if (t := _label(v))}
    )


# --- tables with a question and an answer ---------------------------------------------------------------------------

_QUESTION = (
    *("question", "questiontext", "question_text", "context", "human", "user", "patient", "client", "input", "query"),
    *("prompt", "instruction", "problem", "post", "utterance", "q", "frage", "pregunta", "statement", "questions"),
)
_ANSWER = (
    *("answer", "answertext", "answer_text", "response", "assistant", "reply", "output", "zen", "therapist", "bot"),
    *("completion", "counsellor", "counselor", "a", "antwort", "respuesta", "answers", "doctor", "chosen", "target"),
)
_THEME = ("theme", "topic", "topics", "category", "tag", "label")
_GROUP = ("group", "questionid", "question_id", "qid", "groupid", "group_id")


def _named(sample: Sample, candidates: tuple[str, ...]) -> str | None:
    """The column whose name is one of `candidates`: alike in letters, or with more words around it."""
    plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(sample.names)}
    for candidate in candidates:
        if candidate.replace("_", "") in plain:
            return plain[candidate.replace("_", "")]
    return None


def question_answer_columns(sample: Sample) -> dict[str, str]:
    """The columns a question-and-answer table would be read by, as far as their names tell."""
    found = {
        "question": _named(sample, _QUESTION),
        "answer": _named(sample, _ANSWER),
        "theme": _named(sample, _THEME),
        "group": _named(sample, _GROUP),
    }
    return {role: name for role, name in found.items() if name is not None}


def _question_answer(value: Any, columns: Columns) -> Draft:
    row = record(value)
    for role in ("question", "answer"):
        if columns.get(role) not in row:
            raise Unreadable("missing-column")
    system = columns.get("system")
    theme, group = columns.get("theme"), columns.get("group")
    turns: list[tuple[Role, str]] = [
        ("user", text_of(row[columns["question"]])),
        ("assistant", text_of(row[columns["answer"]])),
    ]
    if system and row.get(system):
        turns.insert(0, ("system", text_of(row[system])))
    return Draft(
        turns,
        theme=_label(row.get(theme)) if theme else "",
        group=_label(row.get(group)) if group else "",
    )


def _fits_question_answer(sample: Sample) -> int:
    return 60 if {"question", "answer"} <= set(question_answer_columns(sample)) else 0


def _alpaca(value: Any, columns: Columns) -> Draft:
    row = record(value)
    question = text_of(_get(row, columns.get("question", "instruction")))
    extra = text_of(_get(row, columns.get("input", "input")), optional=True).strip()
    answer = text_of(_get(row, columns.get("answer", "output"), "response"))
    # Counselling sets put the same order to the model in every row and the person's words into `input`.
    orders = re.match(r"\s*(if you are|you are|answer|act as|respond|as a|below is|please answer)\b", question, re.I)
    if extra and orders:
        return Draft([("system", question), ("user", extra), ("assistant", answer)])
    return Draft([("user", f"{question}\n\n{extra}" if extra else question), ("assistant", answer)])


def _fits_alpaca(sample: Sample) -> int:
    return 85 if sample.has("instruction", "output") and len(sample.names) <= 8 else 0


def _prompt_completion(value: Any, columns: Columns) -> Draft:
    row = record(value)
    prompt = _get(row, columns.get("question", "prompt"))
    reply = _get(row, columns.get("answer", "completion"), "chosen", "response")
    turns: list[tuple[Role, str]] = []
    for part, role in ((prompt, "user"), (reply, "assistant")):
        if isinstance(part, list):
            turns += [(role_of(_get(record(t), "role")), text_of(_get(record(t), "content"))) for t in part]
        else:
            turns.append(("user" if role == "user" else "assistant", text_of(part)))
    # A preference row repeats the prompt inside `chosen`.
    if isinstance(prompt, list) and isinstance(reply, list) and reply[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    return Draft(turns)


def _fits_prompt_completion(sample: Sample) -> int:
    return 80 if sample.has("prompt") and (sample.has("completion") or sample.has("chosen")) else 0


def _counsel_chat(value: Any, columns: Columns) -> Draft:
    """The asker's title and text are one question; the answering professionals' names and profiles are not read."""
    row = record(value)
    title = text_of(_get(row, "questionTitle"), optional=True).strip()
    body = text_of(_get(row, "questionText"), optional=True).strip()
    answer = text_of(_get(row, "answerText"))
    flat = re.sub(r"\W+", " ", body).lower()
    question = body if title and re.sub(r"\W+", " ", title).lower().strip() in flat else f"{title}\n{body}".strip()
    themes = text_of(_get(row, "topic", "topics"), optional=True)
    votes = _get(row, "upvotes")
    return Draft(
        [("user", question), ("assistant", answer)],
        theme=themes.split(",")[0].strip().lower().replace(" ", "-"),
        group=_label(_get(row, "questionID")) or title,
        labels={"upvotes": str(votes)} if str(votes or "").isdigit() and int(votes) > 0 else {},
    )


def _fits_counsel_chat(sample: Sample) -> int:
    return 100 if sample.has("questionID", "questionTitle", "questionText", "answerText") else 0


# --- one text with markers, and prose -------------------------------------------------------------------------------

_MARKER = re.compile(r"(?:^|\n|(?<=[.!?\s])|/n)\s*<{1,3}\s*(human|user|assistant|bot)\s*>{1,3}\s*:\s*", re.I)
_INST = re.compile(r"\s*(?:<s>)?\s*\[INST\](?:\s*<<SYS>>(.*?)<</SYS>>)?(.*?)\[/INST\](.*?)(?=<s>|\[INST\]|$)", re.S)
_CHATML = re.compile(r"<\|im_start\|>\s*(\w+)\n(.*?)(?:<\|im_end\|>|$)", re.S)


def turns_in(text: str) -> list[tuple[Role, str]]:
    """Turns of one text that marks its speakers: `<HUMAN>:`, `<<<ASSISTANT>>>:`, [INST], ChatML. [] if it does not."""
    if _MARKER.search(text):
        pieces = _MARKER.split(text)
        turns = [(role_of(name), said.strip()) for name, said in zip(pieces[1::2], pieces[2::2], strict=True)]
        # A literal "/n" in front of the next marker stands for a line break in some copies of the seeds' data.
        return [(role, re.sub(r"\s*/n$", "", said)) for role, said in turns]
    if "[INST]" in text:
        found: list[tuple[Role, str]] = []
        for system, asked, answered in _INST.findall(text):
            found += [("system", system.strip())] if system.strip() else []
            found += [("user", asked.strip()), ("assistant", answered.replace("</s>", "").strip())]
        return found
    if "<|im_start|>" in text:
        return [(role_of(name), said.strip()) for name, said in _CHATML.findall(text)]
    return []


def _text_column(value: Any, columns: Columns) -> Draft:
    row = record(value)
    text = text_of(_get(row, columns.get("text", "text"), "content"))
    if turns := turns_in(text):
        return Draft(turns, labels={})
    return Draft([("assistant", text)], theme=_label(row.get("theme")), labels={"form": "prose"})


def _fits_marked(sample: Sample) -> int:
    texts = sample.texts("text")
    return 90 if texts and sum(bool(turns_in(t)) for t in texts) * 2 > len(texts) else 0


def _fits_prose(sample: Sample) -> int:
    return 50 if sample.texts("text") and not _fits_question_answer(sample) else 0


# --- tables with one utterance a row --------------------------------------------------------------------------------

_SESSION = (
    "transcriptid",
    "dialogueid",
    "dialogid",
    "conversationid",
    "convid",
    "sessionid",
    "session",
    "dialogue",
    "conversation",
    "threadid",
    "chatid",
    "transcript",
)
_SPEAKER = ("interlocutor", "speaker", "role", "author", "speakerrole", "from", "who", "sender", "participant")
_UTTERANCE = ("utterancetext", "utterance", "text", "message", "content", "turntext", "sentence", "body")
_ORDER = ("utteranceid", "turnid", "turn", "index", "position", "utteranceidx", "turnidx", "timestamp")


def utterance_columns(sample: Sample) -> dict[str, str]:
    """The columns an utterance table would be read by, as far as their names tell."""
    found = {
        "session": _named(sample, _SESSION),
        "speaker": _named(sample, _SPEAKER),
        "utterance": _named(sample, _UTTERANCE),
        "order": _named(sample, _ORDER),
        "theme": _named(sample, ("topic", "theme", "category")),
    }
    return {role: name for role, name in found.items() if name is not None}


def _fits_utterances(sample: Sample) -> int:
    return 75 if {"session", "speaker", "utterance"} <= set(utterance_columns(sample)) else 0


def _utterances(
    rows: Iterator[Row], columns: Columns, refuse: Callable[[Row, str], None]
) -> Iterator[tuple[Row, Draft]]:
    """Join rows of one session into a conversation. A session's rows must stand together, as they do in AnnoMI."""
    first: Row | None = None
    session, seen_order, draft = "", "", Draft([])
    for row in rows:
        try:
            value = record(row.value)
            for role in ("session", "speaker", "utterance"):
                if columns.get(role) not in value:
                    raise Unreadable("missing-column")
            key = _label(value[columns["session"]])
            if not key:
                raise Unreadable("no-session")
            turn = (role_of(value[columns["speaker"]]), text_of(value[columns["utterance"]]))
        except Unreadable as error:
            refuse(row, error.reason)
            continue
        if first is None or key != session:
            if first is not None:
                yield first, draft
            theme = _label(value.get(columns["theme"])) if "theme" in columns else ""
            quality = value.get("mi_quality")
            first, session, seen_order = row, key, ""
            draft = Draft([], theme=theme, group=key, labels={"quality": _label(quality)} if quality else {})
        # AnnoMI repeats an utterance once for every annotator: same session, same number, same words.
        order = _label(value.get(columns["order"])) if "order" in columns else ""
        if order and order == seen_order and draft.turns and draft.turns[-1] == turn:
            continue
        seen_order = order
        draft.turns.append(turn)
    if first is not None:
        yield first, draft


# --- documents: intents, MedQuAD, prompt banks, transcripts ---------------------------------------------------------


def _fits_intents(sample: Sample) -> int:
    return 95 if sample.has("tag", "patterns", "responses") else 0


def _intents(rows: Iterator[Row], columns: Columns, refuse: Callable[[Row, str], None]) -> Iterator[tuple[Row, Draft]]:
    """Each pattern of an intent with one of its replies, taken in turn; a whole intent stays on one side of a split."""
    for row in rows:
        try:
            value = record(row.value)
            tag, patterns, replies = _label(value.get("tag")), value.get("patterns"), value.get("responses")
            if not isinstance(patterns, list) or not isinstance(replies, list):
                raise Unreadable("wrong-type")
            asked = [text_of(p) for p in patterns]
            said = [text_of(r) for r in replies]
            if not [p for p in asked if p.strip()] or not [r for r in said if r.strip()]:
                raise Unreadable("one-sided")
        except Unreadable as error:
            refuse(row, error.reason)
            continue
        for index in range(max(len(asked), len(said))):
            turns: list[tuple[Role, str]] = [
                ("user", asked[index % len(asked)]),
                ("assistant", said[index % len(said)]),
            ]
            yield row, Draft(turns, theme=tag, group=f"intent:{tag}")


def _find(element: dict[str, Any], tag: str) -> Iterator[dict[str, Any]]:
    for child in element["children"]:
        if child["tag"] == tag:
            yield child
        yield from _find(child, tag)


def _fits_medquad(sample: Sample) -> int:
    first = sample.values[0] if sample.values else None
    if sample.container != "xml" or not isinstance(first, dict):
        return 0
    return 100 if first.get("tag") == "Document" and any(_find(first, "QAPair")) else 0


def _medquad(rows: Iterator[Row], columns: Columns, refuse: Callable[[Row, str], None]) -> Iterator[tuple[Row, Draft]]:
    for row in rows:
        focus = next(_find(row.value, "Focus"), None)
        found = False
        for pair in _find(row.value, "QAPair"):
            question, answer = next(_find(pair, "Question"), None), next(_find(pair, "Answer"), None)
            if question is None or answer is None or not answer["text"].strip():
                refuse(row, "one-sided")
                continue
            found = True
            # The set's questions are made by a form: "What is (are) Depression ?"
            asked = re.sub(r"\s+\?", "?", question["text"].replace("What is (are)", "What is")).strip()
            theme = focus["text"].strip().lower().replace(" ", "-") if focus else ""
            kind = question["attributes"].get("qtype", "")
            turns: list[tuple[Role, str]] = [("user", asked), ("assistant", answer["text"])]
            yield row, Draft(turns, theme=theme, group=f"medquad:{theme}", labels={"kind": kind[:60]} if kind else {})
        if not found:
            refuse(row, "no-messages")


def _fits_prompts(sample: Sample) -> int:
    if sample.has("inputs") and any(isinstance(v, dict) and isinstance(v.get("inputs"), list) for v in sample.values):
        return 70
    return (
        70
        if sample.has("prompt", "expected_behaviors") or (sample.has("id", "prompt") and len(sample.names) <= 8)
        else 0
    )


def _prompts(value: Any, columns: Columns) -> Draft:
    """Someone's words without a reply: a list of prompts for evaluation. Refused later as one-sided, and counted."""
    row = record(value)
    inputs = _get(row, "inputs", "prompt")
    parts = inputs if isinstance(inputs, list) else [inputs]
    return Draft([("user", "\n".join(text_of(part) for part in parts))], labels={"form": "prompt"})


_SAID = re.compile(
    r"^\s*(?:\[?\d{1,2}:\d{2}(?::\d{2})?\]?\s*)?"  # a time of day, as in exported transcripts
    r"[<*_\[]*([A-Za-z][A-Za-z \-]{0,18}?)[>*_\]]*\s*(?:\d{1,2})?\s*[:：]\s*(.*)$"
)
_ENDS = re.compile(
    r"^\s*(?:-{3,}|={3,}|\*{3,}|#{1,3}\s.*|(?:session|conversation|dialogue|transcript|case)\s+\w{1,8}\s*:?)\s*$", re.I
)


def _fits_transcript(sample: Sample) -> int:
    if sample.container != "text":
        return 0
    lines = [v for v in sample.values if isinstance(v, str) and v.strip()]
    speakers = {ROLE_OF.get(m[1].strip().lower()) for line in lines if (m := _SAID.match(line))}
    marked = sum(bool(_MARKER.search(line)) for line in lines)
    return 80 if {"user", "assistant"} <= speakers or marked >= 2 else 0


def _transcript(
    rows: Iterator[Row], columns: Columns, refuse: Callable[[Row, str], None]
) -> Iterator[tuple[Row, Draft]]:
    """`Client: ...` and `Counsellor: ...` lines; a line without a speaker goes on with the one before.

    A rule of dashes, a heading, `Session 2` or two blank lines begin a new conversation.
    """
    first: Row | None = None
    draft, blank = Draft([]), 0
    for row in rows:
        line: str = row.value
        if not line.strip():
            blank += 1
            continue
        ends = bool(_ENDS.match(line))
        if (ends or blank >= 2) and first is not None:
            yield first, draft
            first, draft = None, Draft([])
        blank = 0
        if ends:
            continue
        said = _SAID.match(line)
        role = ROLE_OF.get(said[1].strip().lower()) if said else None
        if said and role:
            first = first or row
            draft.turns.append((role, said[2]))
        elif draft.turns:
            speaker, before = draft.turns[-1]
            draft.turns[-1] = (speaker, f"{before}\n{line.strip()}")
        else:
            refuse(row, "no-speaker")
    if first is not None:
        yield first, draft


def _fits_plain_text(sample: Sample) -> int:
    return 20 if sample.container == "text" and any(isinstance(v, str) and v.strip() for v in sample.values) else 0


def _plain_text(
    rows: Iterator[Row], columns: Columns, refuse: Callable[[Row, str], None]
) -> Iterator[tuple[Row, Draft]]:
    """Paragraphs of a text without speakers, as training text for a base. Only on request: it is never guessed."""
    first: Row | None = None
    lines: list[str] = []
    for row in rows:
        if row.value.strip():
            first = first or row
            lines.append(row.value.strip())
        elif first is not None:
            yield first, Draft([("assistant", "\n".join(lines))], labels={"form": "prose"})
            first, lines = None, []
    if first is not None:
        yield first, Draft([("assistant", "\n".join(lines))], labels={"form": "prose"})


_QA = ("question", "answer", "theme", "group", "system")

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("warmline", "Warmline's own conversations", _fits_own, _own),
        Format("counsel-chat", "CounselChat: questions with therapists' answers", _fits_counsel_chat, _counsel_chat),
        Format(
            "esconv",
            "ESConv: emotional support dialogues",
            lambda s: 100 if s.has("dialog", "experience_type", "problem_type") else 0,
            _esconv,
        ),
        Format("medquad", "MedQuAD: questions and answers in XML", _fits_medquad, gather=_medquad),
        Format("intents", "intents with patterns and replies", _fits_intents, gather=_intents),
        Format(
            "messages",
            "lists of messages with roles (OpenAI)",
            _fits_messages,
            _messages,
            roles=("messages", "theme", "group"),
        ),
        Format(
            "sharegpt",
            "lists of from/value turns (ShareGPT)",
            _fits_sharegpt,
            _messages,
            roles=("messages", "theme", "group"),
        ),
        Format(
            "human-assistant",
            "one text a row with <HUMAN>/<ASSISTANT> marks",
            _fits_marked,
            _text_column,
            roles=("text",),
        ),
        Format(
            "alpaca",
            "instruction, input, output (Alpaca)",
            _fits_alpaca,
            _alpaca,
            roles=("question", "input", "answer"),
        ),
        Format(
            "prompt-completion",
            "prompt and completion",
            _fits_prompt_completion,
            _prompt_completion,
            roles=("question", "answer"),
        ),
        Format(
            "utterances",
            "one utterance a row, several rows a session (AnnoMI)",
            _fits_utterances,
            gather=_utterances,
            roles=("session", "speaker", "utterance", "order", "theme"),
        ),
        Format("transcript", "plain transcripts with speakers' names", _fits_transcript, gather=_transcript),
        Format("prompts", "prompts without replies", _fits_prompts, _prompts),
        Format(
            "question-answer",
            "a table with a question and an answer column",
            _fits_question_answer,
            _question_answer,
            roles=_QA,
        ),
        Format("prose", "running text, for training a base", _fits_prose, _text_column, roles=("text",)),
        Format("plain-text", "paragraphs of a text file, for training a base", _fits_plain_text, gather=_plain_text),
    )
}
"""Every shape by name, as `--format` takes it. The best fit wins; on a tie the one higher up."""


def to_messages(draft: Draft) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in draft.turns)
