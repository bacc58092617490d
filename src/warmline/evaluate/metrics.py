"""What can be counted in a reply without a judge. Each metric is one pure function of a reply and its company.

To add one, write the function and a line in `METRICS`. Wordings are English; what these numbers cannot see stands in
docs/evaluate.md.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sacrebleu.metrics.chrf import CHRF

from warmline.corpus.split import folded

COPIED = 8
EDGE = 3


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply, the person's words it answers, and the reply that a person gave, where there is one."""

    asked: str
    text: str
    stop: str = "stop"
    reference: str | None = None


@dataclass(slots=True)
class Company:
    """What a reply is compared with: the system's other replies and the replies in the training split."""

    openings: Counter[str]
    endings: Counter[str]
    size: int
    trained_on: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, replies: Sequence[Reply], trained_on: set[int] | None = None) -> Company:
        return cls(
            Counter(_opening(r.text) for r in replies),
            Counter(_ending(r.text) for r in replies),
            len(replies),
            trained_on if trained_on is not None else set(),
        )


def _words(text: str) -> list[str]:
    return folded(text).split()


def _opening(text: str) -> str:
    return " ".join(_words(text)[:EDGE])


def _ending(text: str) -> str:
    return " ".join(_words(text)[-EDGE:])


def sentences(text: str) -> list[str]:
    """
    >>> sentences("I see. What was that like? Tell me")
    ['I see.', 'What was that like?', 'Tell me']
    """
    return [s.strip() for s in re.findall(r"[^.!?\n]+[.!?]*", text) if s.strip()]


def sequences(text: str, length: int = COPIED) -> set[int]:
    """Hashes of a text's word sequences, for `Company.trained_on`. Hold within one process only."""
    words = _words(text)
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


def length(reply: Reply, company: Company) -> float:
    """Words."""
    return len(reply.text.split())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings a second of imports that those who ask models don't need

    return RougeScorer(["rougeL"])


@cache
def _chrf() -> Any:
    return CHRF()


def rouge_l(reply: Reply, company: Company) -> float | None:
    """Longest common sequence of words with the reference, F1 (Lin 2004, as the package rouge-score has it)."""
    if reply.reference is None:
        return None
    return float(_rouge().score(reply.reference, reply.text)["rougeL"].fmeasure)


def chrf(reply: Reply, company: Company) -> float | None:
    """Common sequences of characters with the reference, 0 to 100 (Popović 2015, as sacrebleu has it)."""
    if reply.reference is None:
        return None
    return float(_chrf().sentence_score(reply.text, [reply.reference]).score)


@cache
def _meanings() -> Any:
    """Static word vectors out of WordLlama's own wheel, never from the network; None where it is not installed."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # else importing it would turn on everybody's messages
    try:
        wordllama = importlib.import_module("wordllama")
    except ImportError:
        return None
    finally:
        root.removeHandler(silent)
    return wordllama.WordLlama.load(cache_dir=Path(str(wordllama.__file__)).parent, disable_download=True)


def meaning(reply: Reply, company: Company) -> float | None:
    """Cosine of the mean word vectors of the reply and the reference, −1 to 1. Word order and "not" do not count."""
    if reply.reference is None or not _words(reply.text) or _meanings() is None:
        return None
    return float(_meanings().similarity(reply.text, reply.reference))


def repetition(reply: Reply, company: Company) -> float:
    """Share of three-word sequences that stood in the same reply before.

    >>> repetition(Reply("", "I am here I am here I am here"), Company.of([]))
    0.5714285714285714
    """
    words = _words(reply.text)
    found = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1 - len(set(found)) / len(found) if found else 0.0


def opens_alike(reply: Reply, company: Company) -> float:
    """Share of the system's other replies that begin with the same three words."""
    return (company.openings[_opening(reply.text)] - 1) / max(1, company.size - 1)


def ends_alike(reply: Reply, company: Company) -> float:
    """Share of the system's other replies that end with the same three words."""
    return (company.endings[_ending(reply.text)] - 1) / max(1, company.size - 1)


_OPEN = re.compile(r"\b(what|how|which|who|where|when|in what way)\b|\b(tell|say) (me )?(a bit |a little )?more", re.I)
_CLOSED = re.compile(
    r"^\W*(and |so |but )?(do|does|did|are|is|was|were|have|has|had|can|could|would|will|should)\b", re.I
)


def open_question(reply: Reply, company: Company) -> float:
    """1 if a question is asked that yes or no does not answer, else 0.

    >>> [open_question(Reply("", text), Company.of([])) for text in ("What keeps you awake?", "Are you well?")]
    [1.0, 0.0]
    """
    asked = [s for s in sentences(reply.text) if s.endswith("?")]
    return float(any(_OPEN.search(s) and not _CLOSED.search(s) for s in asked))


_REFLECTS = re.compile(
    r"^\W*(and |so |but |i can hear (that )?|i hear (that )?|i understand (that )?)?"
    r"(it|that|this|what you describe) (really )?(sounds|seems|feels|must|can be|could be)\b"
    r"|^\W*(and |so |but )?(you|you're|you are|you've|part of you)\b(?! (should|could|can|must|need|may|might|will)\b)"
    r"|\byou (feel|felt|sound|seem)\b|\byou(’|')re (feeling|carrying)\b|\bi hear\b|\bi can hear\b",
    re.I,
)


def reflection(reply: Reply, company: Company) -> float:
    """1 if a sentence gives back what was heard ("You feel…", "That sounds…") without asking, else 0.

    >>> [reflection(Reply("", t), Company.of([])) for t in ("That sounds lonely.", "You should sleep.", "Why?")]
    [1.0, 0.0, 0.0]
    """
    return float(any(_REFLECTS.search(s) for s in sentences(reply.text) if not s.endswith("?")))


_ROLE = re.compile(
    r"^\W*(user|human|assistant|patient|client|therapist|counsel+or)\W*:|<\W*(human|assistant|user)\W*>", re.I | re.M
)


def runs_on(reply: Reply, company: Company) -> float:
    """1 if the reply was cut at the longest allowed length, or goes on into somebody's next turn, else 0."""
    return float(reply.stop == "length" or _ROLE.search(reply.text) is not None)


def copied(reply: Reply, company: Company) -> float | None:
    """Share of eight-word sequences that stand in a reply of the training split."""
    found = sequences(reply.text)
    return len(found & company.trained_on) / len(found) if found else None


@dataclass(frozen=True, slots=True)
class Metric:
    """`better`: which way is better, where anybody can say; `share`: only 0 or 1."""

    measure: Callable[[Reply, Company], float | None]
    says: str
    better: Literal["higher", "lower", ""] = ""
    share: bool = False


METRICS: dict[str, Metric] = {
    "rouge_l": Metric(rouge_l, "ROUGE-L with the person's reply", "higher"),
    "chrf": Metric(chrf, "chrF with the person's reply", "higher"),
    "meaning": Metric(meaning, "words of like meaning to the person's reply", "higher"),
    "length": Metric(length, "words"),
    "open_question": Metric(open_question, "asks an open question", "", share=True),
    "reflection": Metric(reflection, "gives back what was heard", "", share=True),
    "runs_on": Metric(runs_on, "runs on past its turn", "lower", share=True),
    "repetition": Metric(repetition, "repeats itself (three-word sequences)", "lower"),
    "opens_alike": Metric(opens_alike, "opens like the other replies", "lower"),
    "ends_alike": Metric(ends_alike, "ends like the other replies", "lower"),
    "copied": Metric(copied, "eight-word sequences from training replies", "lower"),
}


def distinct(replies: Sequence[Reply], n: int) -> float:
    """Different n-word sequences in all replies together, as a share of all of them (Li et al. 2016).

    >>> distinct([Reply("", "I am here"), Reply("", "I am not")], 1)
    0.6666666666666666
    """
    found = [tuple(words[i : i + n]) for words in (_words(r.text) for r in replies) for i in range(len(words) - n + 1)]
    return len(set(found)) / len(found) if found else 0.0
