"""Decide how serious a message is: text in, finding out. Knows nothing about models, replies or who is asking.

First the words (`tables/lexicon.yaml`) with their scopes: denied, figurative, past, about somebody else, quoted,
invented. Then a small classifier, which raises what the words found and lowers, to L2 at least, what it finds plainly
harmless. Should it fail, the words stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from warmline.errors import SafetyError
from warmline.safety import encoder
from warmline.safety.classify import TURNS, Classifier, Judgement, Odds, conversation, harmless, shipped, thresholds
from warmline.safety.language import SCREENED, language_of, looks_english
from warmline.safety.normalise import Normalised, normalise
from warmline.safety.phrases import Grammar, Hit, Phrase, PhraseBook, Words, rarest, words_of
from warmline.safety.tables import table

SHORT = 30
"""A denial holds for the whole of a message of so few words."""
LONGEST = 20_000
"""Characters screened; of a longer message the beginning and the end, where people say what matters."""

TURN_READ = 2000
"""Characters of each turn, from its end, that are read when a conversation is read as a whole."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one message showed. `level` 0 none, 1 distress, 2 passive or self-injury, 3 active or plan, 4 imminent.

    `spans` are (start, end, rule id) in the original text; `families` the kinds of signs, for the state.
    """

    level: int
    flags: frozenset[str] = frozenset()
    spans: tuple[tuple[int, int, str], ...] = ()
    rules: tuple[str, ...] = ()
    score: float = 0.0
    language: str = "en"
    families: frozenset[str] = frozenset()
    odds: Odds | None = None
    """The classifier's worst log-odds in the message, for the state; None where nothing was judged."""
    whole: float | None = None
    """The encoder's log-odds that the conversation so far calls for acting (`screen_turn`); None where not read."""


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    level: int
    family: str
    flags: frozenset[str]
    scopes: frozenset[str]
    own: bool
    """Its phrases speak of oneself; never read as talk about somebody else."""
    longest: int
    """Holds only in messages of at most so many words; 0 for any length."""


ALL_SCOPES = frozenset({"negation", "idiom", "past", "third", "quotation", "fiction"})
KNOWN_SCOPES = ALL_SCOPES | {"help", "history", "technical", "bereaved"}
_TOPICS = ("help", "history", "technical", "bereaved")
_ABOUT = (*_TOPICS, "fiction")
_RISK_FAMILIES = frozenset({"ideation", "plan", "attempt", "self_injury", "intent", "burden", "goodbye", "means"})
_DISTRESS = frozenset({"hopeless", "worthless", "alone", "low", "loss"})
_HAPPENING = frozenset({"attempt", "means"})
_PLAIN = frozenset({"myself", "suicide", "suicidal", "kms", "life"})
_BASE = (0.0, 0.15, 0.6, 0.85, 0.97)


@dataclass(slots=True)
class _Signs:
    """What has been gathered while reading one message."""

    level: int = 0
    flags: set[str] = field(default_factory=set)
    families: set[str] = field(default_factory=set)
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    topical: bool = False
    """Something in the message suggests a question of knowledge, a technical matter or a figure of speech."""
    firm: bool = False
    """A finding of L3 or more names the writer's own death in so many words, or what has been taken or is at hand."""
    softened: set[str] = field(default_factory=set)
    """Families that were denied, long past, or somebody else's."""

    def add(self, rule: str, level: int, family: str, flags: Iterable[str], span: tuple[int, int]) -> None:
        self.level = max(self.level, level)
        self.flags.update(flags)
        self.families.add(family)
        if rule not in self.rules:
            self.rules.append(rule)
        self.spans.append((*span, rule))


class Lexicon:
    """The compiled tables. `screen` uses the shipped ones; tests and operators may compile their own, if stricter."""

    def __init__(self, lexicon: dict[str, Any], scopes: dict[str, Any], second_tier: dict[str, Any]) -> None:
        self.version = f"{lexicon['version']}.{scopes['version']}.{second_tier['version']}"
        grammar = Grammar(lexicon["classes"], "lexicon.yaml")
        self.rules: dict[str, Rule] = {}
        self.parts: dict[str, int] = {}
        """Rules of several parts, all of which must stand in one sentence, and how many parts they have."""
        phrases: list[Phrase] = []
        for entry in lexicon["rules"]:
            rule = Rule(
                entry["id"],
                int(entry["level"]),
                entry["family"],
                frozenset(entry.get("flags", ())),
                frozenset(entry["scopes"]) if "scopes" in entry else ALL_SCOPES,
                entry.get("person") == "self",
                int(entry.get("within_words", 0)),
            )
            if rule.id in self.rules or not 0 <= rule.level <= 4 or not rule.scopes <= KNOWN_SCOPES:
                raise SafetyError(
                    f"rule `{rule.id}` is there twice, or its level or a scope is unknown",
                    code="safety-data",
                    where="lexicon.yaml",
                    hint=f"levels are 0 to 4; scopes are {', '.join(sorted(KNOWN_SCOPES))}",
                )
            self.rules[rule.id] = rule
            phrases += [grammar.compile(str(phrase), rule.id) for phrase in entry.get("say", ())]
            parts = [
                [grammar.compile(str(phrase), f"{rule.id}#{part}") for phrase in group]
                for part, group in enumerate(entry.get("all", ()))
            ]
            if parts:
                self.parts[rule.id] = len(parts)
                # no part is looked for where another can't be
                needs = [frozenset[str]().union(*(rarest(one.needs) or () for one in part)) for part in parts]
                phrases += [replace(one, needs=(*one.needs, *needs)) for part in parts for one in part]
        self.book = PhraseBook(phrases)
        self.together = [(e["id"], frozenset(e["has"]), int(e["level"])) for e in lexicon["together"]]

        scope_grammar = Grammar(
            scopes["classes"] | lexicon["classes"] | {"part": lexicon["classes"]["body"]}, "scopes.yaml"
        )
        around: list[Phrase] = [scope_grammar.compile(str(p), "idiom") for p in scopes["idiom"]["cancel"]]
        around += [scope_grammar.compile(str(p), "past") for p in scopes["past"]["around"]]
        around += [scope_grammar.compile(str(p), "present") for p in scopes["past"]["unless"]]
        for name in _ABOUT:
            around += [scope_grammar.compile(str(p), name) for p in scopes[name]["around"]]
        self.around = PhraseBook(around)
        self.negators = _plain(scopes["negation"]["before"])
        self.no_denial = _plain(scopes["negation"]["broken_by"])
        self.reach = int(scopes["negation"]["reach"])
        self.others = _plain(scopes["third"]["subjects"])
        self.selves = _plain(scopes["third"]["self"])
        self.owns = _plain(scopes["third"]["own"])

        self.tier: dict[str, PhraseBook] = {}
        self.contains: dict[str, list[tuple[int, str]]] = {}
        empty = Grammar({}, "second_tier.yaml")
        for code, entry in second_tier["languages"].items():
            rows = [empty.compile(str(p), str(level)) for level, many in entry.get("phrases", {}).items() for p in many]
            if rows:
                self.tier[code] = PhraseBook(rows)
            self.contains[code] = [
                (int(level), normalise(str(p)).text) for level, many in entry.get("contains", {}).items() for p in many
            ]

    # ------------------------------------------------------------------ scopes

    def _denied(self, words: Words, hit: Hit, start: int) -> bool:
        """A negation shortly before, in the same clause, with nothing between that turns it round."""
        for at in range(hit.first - 1, max(start, hit.first - 1 - self.reach) - 1, -1):
            word = words.words[at]
            if word == "," or word in self.no_denial:
                return False
            if word in self.negators:
                return not (at > start and words.words[at - 1] in ("why", "if", "whether"))
        return False

    def _somebody_else(self, words: Words, hit: Hit, start: int) -> bool:
        """Whether the nearest person named before the finding is not the writer."""
        inside = words.words[hit.first : hit.last]
        if any(word in self.selves for word in inside):
            return False
        if any(word in self.owns for word in inside):
            return True
        for at in range(hit.first - 1, start - 1, -1):
            word = words.words[at]
            if word in self.selves:
                if word == "my" and at + 1 < len(words.words) and words.words[at + 1] in self.others:
                    continue
                return False
            if word in self.others:
                return True
        return False

    @staticmethod
    def _quoted(words: Words, hit: Hit) -> bool:
        before = sum(word == '"' for word in words.words[: hit.first])
        return before % 2 == 1 and '"' in words.words[hit.last - 1 :]

    # ------------------------------------------------------------------ reading

    def _whole(self, words: Words) -> Iterator[Hit]:
        """Hits of phrases, and of rules whose parts all stand in one sentence."""
        partial: dict[tuple[str, int], dict[int, list[Hit]]] = {}
        for hit in self.book.search(words):
            name, _, part = hit.key.partition("#")
            if part:
                start, _ = words.sentence(hit.first)
                partial.setdefault((name, start), {}).setdefault(int(part), []).append(hit)
            else:
                yield hit
        for (name, _), parts in partial.items():
            if len(parts) == self.parts[name]:
                found = [hit for hits in parts.values() for hit in hits]
                yield Hit(name, min(hit.first for hit in found), max(hit.last for hit in found))

    def read(self, words: Words, plain: Normalised) -> _Signs:
        """Every sign of the lexicon in one message, each weighed by its scopes."""
        signs = _Signs()
        surroundings: dict[str, list[Hit]] = {}
        for hit in self.around.search(words):
            surroundings.setdefault(hit.key, []).append(hit)
        present = bool(surroundings.get("present"))
        signs.topical = any(name in surroundings for name in (*_TOPICS, "idiom"))

        def near(scope: str, start: int, end: int) -> bool:
            return any(hit.first < end and hit.last > start for hit in surroundings.get(scope, ()))

        for hit in self._whole(words):
            rule = self.rules[hit.key]
            start, end = words.sentence(hit.first)
            span = plain.original(words.spans[hit.first][0], words.spans[hit.last - 1][1])
            if "idiom" in rule.scopes and any(
                min(hit.last, idiom.last) - max(hit.first, idiom.first)
                >= (1 if hit.last - hit.first <= 4 else (hit.last - hit.first) / 2)
                for idiom in surroundings.get("idiom", ())
            ):
                continue
            if any(name in rule.scopes and near(name, start, end) for name in _TOPICS):
                signs.softened.add("asked_about")
                continue
            level, flags = rule.level, set(rule.flags)
            if rule.longest and len(words.words) > rule.longest:
                if not level:
                    continue
                level = min(level, 1)
            if "negation" in rule.scopes and self._denied(words, hit, start):
                if rule.family in _RISK_FAMILIES:
                    signs.softened.add("denied")
                    signs.add(f"{rule.id}/denied", min(level, 1), "denied", (), span)
                continue
            if (
                "fiction" in rule.scopes
                and near("fiction", 0, len(words.words))
                and (self._quoted(words, hit) or not any(word in self.selves for word in words.words[start:end]))
            ):
                signs.softened.add("fiction")
                signs.add(f"{rule.id}/fiction", 0, "fiction", {"fiction"}, span)
                continue
            if "third" in rule.scopes and not rule.own and self._somebody_else(words, hit, start):
                if rule.family in _RISK_FAMILIES:
                    signs.softened.add("third")
                    signs.add(f"{rule.id}/third", min(level, 1), "third", {"third_person"}, span)
                continue
            if "quotation" in rule.scopes and self._quoted(words, hit) and self._somebody_else(words, hit, 0):
                signs.softened.add("quoted")
                signs.add(f"{rule.id}/quoted", min(level, 1), "quoted", {"quoted"}, span)
                continue
            long_past = near("past", 0, len(words.words)) if rule.family == "attempt" else near("past", start, end)
            if "past" in rule.scopes and long_past and not present and rule.level < 4:
                if rule.family in _RISK_FAMILIES:
                    signs.softened.add("past")
                    flags.add("past_attempt")
                    signs.add(f"{rule.id}/past", min(level, 1), "past", flags, span)
                continue
            signs.add(rule.id, level, rule.family, flags, span)
            if level > 2 and (rule.family in _HAPPENING or not _PLAIN.isdisjoint(words.words[hit.first : hit.last])):
                signs.firm = True
        for name, has, level in self.together:
            if has <= signs.families:
                signs.add(name, level, "together", (), (0, 0))
                signs.spans.pop()
        return signs

    def read_second_tier(self, words: Words, plain: Normalised, language: str, signs: _Signs) -> None:
        """Explicit phrases of the other screened languages; of all of them where a short text may be in any."""
        unsure = language == "en" and not looks_english(words.words)
        for code, book in self.tier.items():
            if code != language and not unsure:
                continue
            for hit in book.search(words):
                if unsure and words.words[hit.first : hit.last] == ("suicide",):
                    continue  # an English word too, and read as one already
                span = plain.original(words.spans[hit.first][0], words.spans[hit.last - 1][1])
                signs.add(f"{code}.explicit-{hit.key}", int(hit.key), "ideation", (), span)
                signs.firm = True
        for level, phrase in self.contains.get(language, ()):
            at = plain.text.find(phrase)
            if at >= 0:
                span = plain.original(at, at + len(phrase))
                signs.add(f"{language}.explicit-{level}", level, "ideation", (), span)
                signs.firm = True


def _plain(words: Iterable[object]) -> frozenset[str]:
    return frozenset(part for word in words for part in normalise(str(word)).text.split())


@cache
def lexicon() -> Lexicon:
    """The shipped lexicon, compiled once."""
    return Lexicon(table("lexicon.yaml"), table("scopes.yaml"), table("second_tier.yaml"))


def prepare() -> None:
    """Read and compile the tables and load the encoder now, so that the first person does not wait for them.

    Raises:
        SafetyError: a table is damaged.
    """
    lexicon()
    shipped()
    with suppress(Exception):  # each turn's rules will say so, and the words judge alone
        encoder.shipped()


def _excerpt(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"


def screen(text: str, classifier: Classifier | None = None, *, amid: bool = False) -> Finding:
    """Screen one message of a person; `amid` says that it is not the first of its conversation.

    Without a classifier of one's own the shipped one is used. It raises levels. Of a first message it lowers L3 and L4
    to L2 where it has read all of it and is sure that nothing is meant, unless the writer's own death, or what has been
    taken or is at hand, is named; what comes later may be an answer, of which it can't be sure. If it raises an
    exception or takes too long, the lexicon's finding stands and the rule `classifier.failed` says so.
    """
    plain = normalise(_excerpt(text))
    words = words_of(plain.text)
    language = language_of(words.words)
    signs = lexicon().read(words, plain)
    lexicon().read_second_tier(words, plain, language, signs)
    if language not in SCREENED:
        signs.flags.add("unscreened_language")
    risk, odds = 0.0, None
    try:
        judge = classifier or shipped()
        opinion = judge(words) if words.words else Judgement(0.0, 0.0, 0.0)
    except Exception:  # whatever it is, the lexicon has spoken already
        signs.rules.append("classifier.failed")
    else:
        risk, odds = opinion.risk, opinion.odds
        if opinion.partial:
            signs.rules.append("encoder.failed")
        _weigh(opinion, signs, short=len(words.words) <= SHORT)
        if not amid and language == "en" and signs.level > 2 and not signs.firm and harmless(words, opinion):
            signs.level = 2
            signs.rules.append("classifier.calm")
    return Finding(
        level=signs.level,
        flags=frozenset(signs.flags),
        spans=tuple(sorted(set(signs.spans))),
        rules=tuple(signs.rules),
        score=round(max(risk, _BASE[signs.level]), 4),
        language=language,
        families=frozenset(signs.families),
        odds=odds,
    )


def screen_turn(
    text: str,
    earlier: Sequence[str],
    told: Sequence[Odds],
    classifier: Classifier | None = None,
    *,
    amid: bool = False,
) -> Finding:
    """Screen one message of a conversation: by itself as `screen` does, and together with those before it.

    `earlier` is what the person said before, `told` the state's (`State.told`); `amid` says that something else came
    before. A classifier of one's own, which gives no log-odds, leaves the conversation unread.
    """
    finding = screen(text, classifier, amid=amid or bool(earlier))
    if not earlier or finding.odds is None:
        return finding
    try:
        turns = [words_of(normalise(turn[-TURN_READ:]).text) for turn in (*earlier[1 - TURNS :], text)]
        return replace(finding, whole=conversation(turns, (*told, finding.odds)))
    except Exception:
        return replace(finding, rules=tuple(dict.fromkeys((*finding.rules, "encoder.failed"))))


def _weigh(opinion: Judgement, signs: _Signs, *, short: bool) -> None:
    """Let the classifier raise a level where it is sure enough."""
    limit = thresholds()
    own = signs.families & {"ideation", "burden", "goodbye", "self_injury"}
    clear = not signs.softened and not signs.topical

    def raise_to(level: int, rule: str, family: str, flags: Iterable[str] = ()) -> None:
        signs.add(rule, level, family, flags, (0, 0))
        signs.spans.pop()

    # a story, a friend or a question of knowledge is no excuse where it is clear that a way is asked for
    asked = opinion.method >= limit["method-certain"] or (clear and opinion.method >= limit["method"])
    likely = opinion.method >= limit["method-likely"] and signs.softened <= {"asked_about"}
    # a short message may be the answer to any question: it has to be plainer by itself
    if asked and opinion.risk >= limit["method-short" if short else "method-risk"] and signs.level < 3:
        raise_to(3, "classifier.method", "method", {"method_request"})
    plan = opinion.active >= limit["certain" if short else "active-alone"] and opinion.risk >= limit["active-risk"]
    if clear and signs.level < 3 and (plan or (opinion.active >= limit["active"] and signs.level == 2 and own)):
        raise_to(3, "classifier.active", "ideation")
    # a denial or a question of knowledge in one sentence does not cover what the others say plainly
    covered = {"asked_about"} if short else {"denied", "asked_about"}
    plain = signs.softened <= covered and opinion.risk >= limit["certain"]
    if (not signs.softened or plain) and signs.level < 2:
        if opinion.risk >= limit["risk"]:
            raise_to(2, "classifier.risk", "suspected")
            if opinion.risk >= limit["strong"]:
                signs.families.add("strong")
        elif opinion.risk >= limit["faint"]:
            # too little for this message, but the conversation remembers
            signs.families.add("faint")
    if likely and signs.level < 2:
        # perhaps asked for: the model may answer, with the resources beside
        raise_to(2, "classifier.asked", "suspected")
