"""Compose training text for the embedded base model from a text grammar.

The grammar is ``shared.yaml`` (sentence templates for all themes) plus one word bank
per theme in ``themes/`` and, for conversations in which somebody listens, nine topics per
theme in ``listening/``: what a person says and what answers exactly that. A value is a
list of templates, or a block of lines with one template a line. Template syntax:

* ``(a|b|c)``        one of the alternatives (they may nest and may be empty)
* ``{symbol}``       a template of that list (the theme's list first, else the shared one)
* ``{name=symbol}``  the same, and remember the text under ``name`` for this document
* ``{name}``         repeat what was remembered
* ``{you:name}``     the same (or a fresh ``{symbol}``), turned into the second person
* ``{low:name}``     the same without the first capital and the full stop
* ``3* text``        this template counts three times in its list

A template that repeats a name which nothing has remembered yet is never drawn, so an
answer can only echo what the question before it has said.

Run: ``python training/embedded_base/compose.py --documents N --seed S --out FILE.jsonl``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
Document = dict[str, Any]

#: Shares of the kinds in a hundred documents. `learning` is for most of the training. `rambling` is for its end: not
#: knowing when a turn is over becomes the base's habit, as bases have it, so that there is something to tune.
MIXES = {
    "learning": {
        "message": 2, "diary": 3, "leaflet": 2, "letter": 1, "listening": 66, "forum": 22, "answers": 4,
    },
    "rambling": {
        "message": 2, "diary": 3, "leaflet": 2, "letter": 1, "rambling": 84, "forum": 8,
    },
}  # fmt: skip
#: Themes about life and death: no forum small talk, no letters.
CAREFUL = ("hopeless", "helping-a-friend")
CAREFUL_KINDS = ("message", "diary", "leaflet", "listening", "rambling", "answers")
RAMBLING = 15, 20
"""Sentences of a reply that has no end: more than are ever sampled."""
TEXTER_SHARE = 0.08

# --- text repairs -----------------------------------------------------------------

_SECOND = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself",
    "am": "are", "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll",
    "we": "you", "us": "you", "our": "your", "ours": "yours", "ourselves": "yourselves",
    "we're": "you're", "we've": "you've", "we'd": "you'd", "we'll": "you'll",
}  # fmt: skip
_SECOND_WORD = re.compile(r"[A-Za-z']+")
_I_WAS = re.compile(r"\b(I(?: \w+ly| never| always| still| also| just| once)?) was(n't)?\b")
_I_SHOULD = re.compile(r"\bI should(?P<no> not|n't)?\b")
_WAS_I = re.compile(r"\b(w)as(n't)? I\b", re.IGNORECASE)


def to_second_person(text: str) -> str:
    """Turn a first-person fragment into the second person ("I am" -> "you are").

    "I should" becomes "you ought to": a reply never says "you should", not even as an echo.
    """
    text = _I_SHOULD.sub(lambda m: "I ought not to" if m["no"] else "I ought to", text)
    text = _I_WAS.sub(lambda m: f"{m[1]} were{m[2] or ''}", text)
    text = _WAS_I.sub(lambda m: f"{m[1]}ere{m[2] or ''} I", text)

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        found = _SECOND.get(word.lower())
        if found is None:
            return word
        if word[0].isupper() and not word.startswith("I"):
            return found[0].upper() + found[1:]
        return found

    return _SECOND_WORD.sub(swap, text)


_KEEP_CAPITAL = re.compile(r"(?:I|AI|I'\w+|Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)(?:day|days)?\b|[A-Z]{2}")


def lowered(text: str) -> str:
    """Make a complete sentence fit inside another one."""
    text = text.rstrip(".! ")
    return text if _KEEP_CAPITAL.match(text) else text[:1].lower() + text[1:]


_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!ni(?!n|m)|s[ue]|se|k|t)|hour|honest|heir|honour)", re.I)
_NO_VOWEL_SOUND = re.compile(r"(?:one\b|once|eu|ewe)", re.I)
_ARTICLE = re.compile(r"\b([Aa])(n?) (?=([A-Za-z]+))")
_SPACES = re.compile(r" {2,}| +(?=[,.;:!?\n])|(?<=\n) +")
_PUNCTUATION = re.compile(r",+(?=[.;:!?])|(?<=[.!?])(?<!\.\.)\.(?!\.)|(?<=[,;]),")
_DOUBLED = re.compile(r"\b([A-Za-z']+) \1\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:^|(?<!\.\.)[.!?][\"']? +|\n)[\"']?([a-z])")


def _article(match: re.Match[str]) -> str:
    word = match[3]
    vowel = _VOWEL_SOUND.match(word) and not _NO_VOWEL_SOUND.match(word)
    return f"{match[1]}{'n' if vowel else ''} "


def tidy(text: str) -> str:
    """Repair spacing, articles, doubled words and sentence capitals."""
    text = _SPACES.sub(lambda m: " " if m[0].isspace() and m.end() < len(m.string)
                       and m.string[m.end()] not in ",.;:!?\n"
                       and m.string[m.start() - 1] != "\n" else "", text.strip())  # fmt: skip
    text = _PUNCTUATION.sub("", text)
    text = _DOUBLED.sub(r"\1", text).replace("can not ", "cannot ")
    text = _ARTICLE.sub(_article, text)
    return _SENTENCE.sub(lambda m: m[0][:-1] + m[1].upper(), text)


_NEGATED = ("do does did is are was were have has had would could should need must").split()
_STARTS = r"(?:(?<=^)|(?<=[.,;:!?] )|(?<=and )|(?<=but )|(?<=that )|(?<=because )|(?<=if ))"
_VARIANTS: list[tuple[str, dict[str, list[str]]]] = [
    (r"\b(?:" + "|".join(_NEGATED) + r") not\b", {f"{v} not": [f"{v}n't"] for v in _NEGATED}),
    (r"\b(?:cannot|will not)\b", {"cannot": ["can't"], "will not": ["won't"]}),
    (
        _STARTS + r"(?:I am|you are|it is|that is|there is)(?= [a-z])",
        {
            "i am": ["I'm"],
            "you are": ["you're"],
            "it is": ["it's"],
            "that is": ["that's"],
            "there is": ["there's"],
        },
    ),
    (
        r"\b(?:I|you) have(?= (?:not|been|never|always|tried|lost|started|stopped|become|had)\b)",
        {"i have": ["I've"], "you have": ["you've"]},
    ),
    (
        r"\b(?:nobody|no one|everyone|everybody|someone|somebody|anyone|anybody)\b(?!'| of)",
        {
            "nobody": ["no one"],
            "no one": ["nobody"],
            "everyone": ["everybody"],
            "everybody": ["everyone"],
            "someone": ["somebody"],
            "somebody": ["someone"],
            "anyone": ["anybody"],
            "anybody": ["anyone"],
        },
    ),
    (r"\bevery (?=(?:day|evening|night|morning|week|month|meal)\b)", {"every ": ["each "]}),
    (
        r"\b(?:almost|nearly|perhaps|maybe|talk to|speak to|talking to|speaking to)\b",
        {
            "almost": ["nearly"],
            "nearly": ["almost"],
            "perhaps": ["maybe"],
            "maybe": ["perhaps"],
            "talk to": ["speak to", "talk with"],
            "speak to": ["talk to", "speak with"],
            "talking to": ["speaking to", "talking with"],
            "speaking to": ["talking to", "speaking with"],
        },
    ),
    (r"(?<=is )(?:hard|difficult)(?= to\b)", {"hard": ["difficult"], "difficult": ["hard"]}),
    (r"(?<=[a-z] )often\b", {"often": ["frequently", "quite often", "commonly"]}),
    (r"\b(?:very|really)(?= [a-z]+(?:ed|y|d|t|ng)\b)", {"very": ["really"], "really": ["very"]}),
]
_VARIANT_TABLE = {key: values for _, table in _VARIANTS for key, values in table.items()}
_VARIANT = re.compile("|".join(pattern for pattern, _ in _VARIANTS), re.IGNORECASE)
#: "often" only takes its bookish variants in the information kinds.
_BOOKISH = ("leaflet", "answers")


def vary(text: str, rate: float, rng: random.Random, bookish: bool = False) -> str:
    """Swap some words for contractions and near-synonyms, which fit at every place matched."""

    def swap(match: re.Match[str]) -> str:
        found = match[0]
        key = found.lower()
        if rng.random() >= rate or (key == "often" and not bookish):
            return found
        values = _VARIANT_TABLE[key]
        new = values[int(rng.random() * len(values))]
        return new[0].upper() + new[1:] if found[0].isupper() else new

    return _VARIANT.sub(swap, text)


_SHORT = {
    "because": "cos", "though": "tho", "do not know": "dunno", "don't know": "dunno",
    "really": "rly", "tonight": "tonite", "please": "pls", "right now": "rn",
    "people": "ppl", "something": "smth", "thanks": "thx", "probably": "prob",
}  # fmt: skip
_SHORT_WORD = re.compile(r"\b(?:" + "|".join(_SHORT) + r")\b")


def texter(text: str, rng: random.Random) -> str:
    """Write a message as a lower-case texter would: no apostrophes, few stops."""
    text = text.lower().replace("'", "")
    stop = rng.choice((". ", " ", "... ", "\n", ", "))
    text = re.sub(r"[.;:] +", stop, text.rstrip(".")).replace("!", "")
    return _SHORT_WORD.sub(lambda m: _SHORT[m[0]] if rng.random() < 0.5 else m[0], text)


# --- grammar ----------------------------------------------------------------------


class Part:
    """A slot of a template; subclasses say what it expands to and which names it needs."""

    def expand(self, state: State) -> str:
        raise NotImplementedError


class Choice(Part):
    def __init__(self, options: list[Template]) -> None:
        self.options = options

    def expand(self, state: State) -> str:
        return state.pick(self.options, fresh=False)


class Symbol(Part):
    def __init__(self, symbol: str, name: str = "", change: Callable[[str], str] | None = None):
        self.symbol, self.name, self.change = symbol, name, change

    def expand(self, state: State) -> str:
        text = state.pick(state.table[self.symbol])
        if self.name:
            state.memory[self.name] = text
        return self.change(text) if self.change else text


class Recall(Part):
    def __init__(self, name: str, change: Callable[[str], str] | None = None) -> None:
        self.name, self.change = name, change

    def expand(self, state: State) -> str:
        if self.name in state.said:
            raise LookupError(f"said already: {self.name}")
        state.said.add(self.name)
        text = state.memory[self.name]
        return self.change(text) if self.change else text


class Template:
    """A compiled template: literal strings and slots, and the names it cannot do without."""

    __slots__ = ("fragile", "needs", "parts", "slots", "source")

    def __init__(self, parts: list[str | Part], source: str) -> None:
        self.parts = parts
        self.source = source
        self.slots = any(not isinstance(part, str) for part in parts)
        self.fragile = any(isinstance(part, (Symbol, Choice)) for part in parts)
        self.needs: frozenset[str] = frozenset()


class State:
    """What one document remembers while it is written."""

    __slots__ = ("memory", "rng", "said", "table", "used")

    def __init__(self, rng: random.Random, table: dict[str, list[Template]]) -> None:
        self.rng, self.table = rng, table
        self.memory: dict[str, str] = {}
        self.used: set[int] = set()
        self.said: set[str] = set()  #: names repeated in this message: once is enough

    def pick(self, options: list[Template], fresh: bool = True) -> str:
        """Expand a random option whose names are known; if ``fresh``, avoid repeats."""
        used, rnd = self.used, self.rng.random
        count = len(options)
        for attempt in range(24):
            option = options[int(rnd() * count)]
            if fresh and attempt < 8 and id(option) in used:
                continue
            if option.needs <= self.memory.keys():
                text = self._write(option)
                if text is not None:
                    break
        else:
            text = next(filter(None, map(self._write, options)), None)
            if text is None:
                raise LookupError(f"nothing fits: {options[0].source!r}")
        if fresh and count > 1:
            used.add(id(option))
        return text

    def _write(self, option: Template) -> str | None:
        """Expand a template; None, and nothing remembered, if a name in it cannot be had."""
        if not option.slots:
            return option.source
        if not option.needs <= self.memory.keys():
            return None
        before = self.memory.copy() if option.fragile else self.memory
        said = self.said.copy()
        try:
            return "".join(
                [part if part.__class__ is str else part.expand(self) for part in option.parts]  # type: ignore[union-attr]
            )
        except LookupError:
            self.memory, self.said = before, said
            return None

    def expand(self, symbol: str) -> str:
        self.said.clear()
        return self.pick(self.table[symbol])


_WEIGHT = re.compile(r"(\d+)\*\s*")
_CHANGES: dict[str, Callable[[str], str]] = {"you": to_second_person, "low": lowered}


#: What a topic of `listening/` has: a person's lines, then the listener's.
TOPIC = ("said", "more", "heard", "asks", "steps")


class Grammar:
    """The shared lists, the theme banks and the topics, compiled."""

    def __init__(
        self,
        shared: dict[str, Any],
        themes: dict[str, dict[str, Any]],
        listening: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self._known: set[Template] = set()
        self._symbols = set(shared).union(*themes.values(), TOPIC if listening else ())
        self._shared = {key: self._compile_list(value) for key, value in shared.items()}
        self.themes = {
            theme: {**self._shared, **{k: self._compile_list(v) for k, v in bank.items()}}
            for theme, bank in sorted(themes.items())
        }
        #: One table per topic: the theme's lists and the topic's own.
        self.topics: dict[str, list[dict[str, list[Template]]]] = {theme: [] for theme in self.themes}
        for theme, bank in (listening or {}).items():
            steps = self._compile_list(bank["steps"])
            for topic in bank["topics"]:
                own = {key: self._compile_list(topic[key]) for key in TOPIC if key != "steps"}
                self.topics[theme].append({**self.themes[theme], **own, "steps": steps})
        for table in [t for topics in self.topics.values() for t in topics] or self.themes.values():
            for options in table.values():
                for option in options:
                    self._needs(option, table, ())

    @classmethod
    def load(cls, folder: Path = HERE, themes: Path | None = None) -> Grammar:
        shared = yaml.load((folder / "shared.yaml").read_text("utf-8"), _Loader)
        banks, topics = (
            {path.stem: yaml.load(path.read_text("utf-8"), _Loader) for path in sorted(place.glob("*.yaml"))}
            for place in (themes or folder / "themes", folder / "listening")
        )
        return cls(shared, banks, {theme: topics[theme] for theme in banks})

    def _compile_list(self, value: str | list[str]) -> list[Template]:
        if not isinstance(value, (str, list)):
            raise ValueError(f"neither a text nor a list: {value!r}")
        lines = value.splitlines() if isinstance(value, str) else value
        options: list[Template] = []
        for line in lines:
            line = line.strip() if isinstance(value, str) else line
            if not line or (isinstance(value, str) and line.startswith("#")):
                continue
            match = _WEIGHT.match(line)
            options += [self.compile(line[match.end() :] if match else line)] * int(match[1] if match else 1)
        if not options:
            raise ValueError("empty list in the grammar")
        return options

    def compile(self, source: str) -> Template:
        parts, end = self._parse(source, 0, "")
        if end != len(source):
            raise ValueError(f"unbalanced: {source!r}")
        return Template(parts, source)

    def _parse(self, source: str, at: int, stops: str) -> tuple[list[str | Part], int]:
        parts: list[str | Part] = []
        start = at
        while at < len(source) and source[at] not in (stops or "|)"):
            char = source[at]
            if char not in "({":
                if char == "}":
                    raise ValueError(f"unbalanced: {source!r}")
                at += 1
                continue
            if start < at:
                parts.append(source[start:at])
            if char == "{":
                end = source.index("}", at)
                parts.append(self._slot(source[at + 1 : end], source))
                at = end + 1
            else:
                options = []
                while at < len(source) and source[at] in "(|":
                    inner, end = self._parse(source, at + 1, "|)")
                    options.append(Template(inner, source[at + 1 : end]))
                    at = end
                if at >= len(source):
                    raise ValueError(f"unbalanced: {source!r}")
                parts.append(Choice(options))
                at += 1
            start = at
        if start < at:
            parts.append(source[start:at])
        return parts, at

    def _slot(self, slot: str, source: str) -> Part:
        name, equals, symbol = slot.partition("=")
        if equals:
            if symbol not in self._symbols or name in self._symbols:
                raise ValueError(f"unknown symbol or taken name {slot!r} in {source!r}")
            return Symbol(symbol, name)
        change, colon, name = slot.rpartition(":")
        if colon and change not in _CHANGES:
            raise ValueError(f"unknown change {slot!r} in {source!r}")
        how = _CHANGES[change] if colon else None
        return Symbol(name, "", how) if name in self._symbols else Recall(name, how)

    def _needs(self, template: Template, table: dict[str, list[Template]], above: tuple[str, ...]) -> frozenset[str]:
        """Names that every way through the template repeats before remembering them."""
        if template in self._known:
            return template.needs
        needs: set[str] = set()
        bound: set[str] = set()
        for part in template.parts:
            if isinstance(part, Recall):
                needs |= {part.name} - bound
            elif isinstance(part, Choice):
                inner = [self._needs(o, table, above) for o in part.options]
                needs |= frozenset.intersection(*inner) - bound
            elif isinstance(part, Symbol):
                if part.symbol in above:
                    raise ValueError(f"endless: {part.symbol}")
                deeper = (*above, part.symbol)
                inner = [self._needs(o, table, deeper) for o in table[part.symbol]]
                needs |= frozenset.intersection(*inner) - bound
                bound |= {part.name}
        template.needs = frozenset(needs)
        self._known.add(template)
        return template.needs


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# --- documents --------------------------------------------------------------------


class Composer:
    """Writes documents; the same seed gives the same documents."""

    def __init__(self, grammar: Grammar, seed: int, mix: str = "learning") -> None:
        self.grammar = grammar
        self.rng = random.Random(seed)
        self.names = list(grammar.themes)
        self._kinds = [kind for kind, share in MIXES[mix].items() for _ in range(share)]
        self._careful_kinds = [kind for kind in self._kinds if kind in CAREFUL_KINDS]

    def document(self, theme: str | None = None, kind: str | None = None) -> Document:
        rng = self.rng
        theme = theme or self.names[int(rng.random() * len(self.names))]
        kinds = self._careful_kinds if theme in CAREFUL else self._kinds
        kind = kind or kinds[int(rng.random() * len(kinds))]
        topics = self.grammar.topics[theme]
        state = State(rng, topics[int(rng.random() * len(topics))])
        rate = rng.choice((0.1, 0.5, 0.5, 0.9))
        document: Document = {"kind": kind, "theme": theme}
        if kind in ("message", "diary", "leaflet", "letter"):
            careful = kind == "leaflet" and theme in CAREFUL
            text = self._finish(state.expand("careful_leaflet" if careful else kind), rate, kind)
            small = kind == "message" and rng.random() < TEXTER_SHARE
            document["text"] = texter(text, rng) if small else text
            return document
        talk = {
            "listening": self._listening,
            "forum": self._forum,
            "rambling": self._rambling,
            "answers": self._answers,
        }
        small = rng.random() < TEXTER_SHARE
        turns = [self._finish(turn, rate, kind) for turn in talk[kind](state, theme)]
        document["messages"] = [
            {
                "role": "assistant" if n % 2 else "user",
                "content": texter(turn, rng) if small and not n % 2 else turn,
            }
            for n, turn in enumerate(turns)
        ]
        return document

    def documents(self, count: int) -> Iterator[Document]:
        for _ in range(count):
            yield self.document()

    def _finish(self, text: str, rate: float, kind: str) -> str:
        return tidy(vary(tidy(text.replace("~", "\n")), rate, self.rng, kind in _BOOKISH))

    def _rounds(self, shares: tuple[float, ...]) -> int:
        roll = self.rng.random()
        return next((n for n, share in enumerate(shares, 1) if roll < share), len(shares) + 1)

    def _listening(self, state: State, theme: str) -> list[str]:
        turns = [state.expand("first"), state.expand("listen")]
        for _ in range(1, self._rounds((0.35, 0.75))):
            turns += [state.expand("next"), state.expand("listen")]
        if len(turns) > 2 and self.rng.random() < 0.15:
            turns[-2:] = [state.expand("thanks"), state.expand("farewell")]
        return turns

    def _forum(self, state: State, theme: str) -> list[str]:
        turns = [state.expand("first"), state.expand("forum_reply")]
        for _ in range(1, self._rounds((0.7, 0.95))):
            turns += [state.expand("forum_user"), state.expand("forum_reply")]
        return turns

    def _rambling(self, state: State, theme: str) -> list[str]:
        """A listener who does not stop: answers in the visitor's voice, wanders off, comes back."""
        piece = "careful_ramble" if theme in CAREFUL else "ramble"
        said = [state.expand("listen")]
        for _ in range(self.rng.randint(*RAMBLING)):
            with contextlib.suppress(LookupError):
                said.append(state.expand(piece))
        return [state.expand("first"), " ".join(said)]

    def _answers(self, state: State, theme: str) -> list[str]:
        answer = "careful_leaflet" if theme in CAREFUL else "answer"
        return [state.expand("first" if self.rng.random() < 0.5 else "question"), state.expand(answer)]


def words(document: Document) -> int:
    texts = [m["content"] for m in document.get("messages", ())] or [document["text"]]
    return sum(len(text.split()) for text in texts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--documents", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--themes", type=Path, help="another folder of theme banks")
    options = parser.parse_args(argv)
    composer = Composer(Grammar.load(themes=options.themes), options.seed)
    kinds: Counter[str] = Counter()
    total = 0
    with options.out.open("w", encoding="utf-8") as out:
        for document in composer.documents(options.documents):
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            kinds[document["kind"]] += 1
            total += words(document)
    for kind, count in sorted(kinds.items()):
        print(f"{kind:10} {count:8}")
    print(f"{'all':10} {options.documents:8} documents, {total} words, "
          f"{total / max(1, options.documents):.1f} words a document")  # fmt: skip


if __name__ == "__main__":
    main()
