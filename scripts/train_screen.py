"""Train the small classifier beside the lexicon from text written for this project, and write its weights as JSON.

    python scripts/train_screen.py [--out src/warmline/safety/tables/classifier.json]

Text: the lines of `scripts/screen_lines`, turns of the conversations of `scripts/screen_talks`, the frames of
`scripts/screen_text.yaml` and `scripts/screen_frames.yaml` (filled by chance, seeded), what visitors without risk say
in the sample corpus, the half of the templates in `tests/safety/cases` that `warmline.safety.classify.in_training`
names, everyday distress from the grammar of the embedded base, and, as real distress without danger, questions from
counsel-chat (MIT). No other text: the weights may be shipped under the project's licence.

Then come `scripts/train_encoder.py` and `scripts/train_talks.py`, in this order.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from warmline.safety.classify import HEADS, Judgement, Weights, features, in_training, windows
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of
from warmline.safety.screen import screen

VERSION = 7
STRENGTH = 0.3
"""Inverse of the penalty on weights."""
PER_FRAME = 40
LINE_WEIGHT = 3.0
"""How much a line of `screen_lines` counts beside one filling of a frame, which has forty."""
SMALLEST = 0.05
"""Weights nearer to zero than this are left out."""


def expand(template: str) -> list[str]:
    """All fillings of a template of the cases: the n-th choice of each {a|b} together."""
    parts = re.split(r"\{([^}]*)\}", template)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    count = max(map(len, choices))
    return ["".join(options[min(n, len(options) - 1)] for options in choices) for n in range(count)]


def combine(frame: str, lists: dict[str, list[str]], dice: random.Random) -> str:
    """One sentence of a frame, choices by chance."""
    while match := re.search(r"\[([^\[\]]*)\]", frame):
        frame = frame[: match.start()] + dice.choice(match.group(1).split("|")) + frame[match.end() :]
    while match := re.search(r"<([a-z_]+)>", frame):
        frame = frame[: match.start()] + dice.choice(lists[match.group(1)]) + frame[match.end() :]
    return " ".join(frame.split())


LABELS = {
    "0": {"risk": 0, "active": 0, "method": 0},
    "2": {"risk": 1, "active": 0, "method": 0},
    "3": {"risk": 1, "active": 1, "method": 0},
    "4": {"risk": 1, "active": 1, "method": 0},
    "m": {"risk": 1, "active": 1, "method": 1},
}


@dataclass(frozen=True)
class Row:
    """One training text. Texts of one `group` (an idea, a template, a voice) are held out together."""

    text: str
    label: dict[str, int]
    group: str
    weight: float = 1.0


def choices(line: str) -> list[str]:
    """Every choice of each [a|b] of a line at least once.

    >>> choices("I [like|love] [tea|rain|you]")
    ['I like tea', 'I love rain', 'I love you']
    """
    parts = re.split(r"\[([^\]]*)\]", line)
    options = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    count = max(map(len, options))
    return [" ".join("".join(o[min(n, len(o) - 1)] for o in options).split()) for n in range(count)]


def lines() -> list[Row]:
    """The lines of `scripts/screen_lines`; the group is the slice, that is, the voice."""
    found = []
    for file in sorted((ROOT / "scripts" / "screen_lines").glob("*.txt")):
        slice_ = ""
        for line in file.read_text("utf-8").splitlines():
            if line.startswith("## "):
                slice_ = line[3:].strip()
            elif line and not line.startswith("#"):
                texts = choices(line[2:])
                found += [Row(text, LABELS[line[0]], slice_, LINE_WEIGHT / len(texts) ** 0.5) for text in texts]
    return found


@dataclass(frozen=True)
class Talk:
    """A conversation: the visitor's turns, and for each how far it has come.

    0 nothing, 1 one would ask about suicide, 2 one would act. `part` says what it is for: "turns" are learnt one by
    one, "fit" says how they count together, "limit" is for choosing thresholds.
    """

    turns: tuple[str, ...]
    reached: tuple[int, ...]

    @property
    def part(self) -> str:
        return ("limit", "fit", "turns", "turns", "turns")[
            hashlib.sha256(" ".join(self.turns).encode()).digest()[0] % 5
        ]


def talks() -> list[Talk]:
    """The conversations of `scripts/screen_talks`, one a line, turns divided by " | ".

    `+` stands before the first turn from which one would ask, `*` before the first from which one would act.
    """
    found = []
    for file in sorted((ROOT / "scripts" / "screen_talks").glob("*.txt")):
        for line in file.read_text("utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            turns, reached, so_far = [], [], 0
            for turn in line.split(" | "):
                so_far = max(so_far, {"+": 1, "*": 2}.get(turn[0], 0))
                turns.append(turn.lstrip("+*"))
                reached.append(so_far)
            found.append(Talk(tuple(turns), tuple(reached)))
    return found


def turns() -> list[Row]:
    """Turns of conversations that say what they are: those before any sign, and the first ones with a sign."""
    found = []
    for number, talk in enumerate(talks()):
        if talk.part == "turns":
            for turn, reached, before in zip(talk.turns, talk.reached, (0, *talk.reached), strict=False):
                if reached == 0 or reached > before:
                    found.append(Row(turn, LABELS[("0", "2", "3")[reached]], f"talk {number}", 2.0))
    return found


def frames(seed: int) -> list[Row]:
    """The frames of `scripts/screen_text.yaml` and `scripts/screen_frames.yaml`, filled by chance."""
    dice = random.Random(seed)
    found, lists = [], {}
    for name in ("screen_text.yaml", "screen_frames.yaml"):
        book = yaml.safe_load((ROOT / "scripts" / name).read_text("utf-8"))
        lists |= book["lists"]
        for kind, label in {"risk": "2", "active": "3", "method": "m", "calm": "0"}.items():
            for frame in book[kind]:
                seen = {combine(frame, lists, dice) for _ in range(PER_FRAME)}
                found += [Row(text, LABELS[label], frame) for text in sorted(seen)]
    return found


def cases() -> list[Row]:
    """The training half of the templates of `tests/safety/cases`."""
    found = []
    for name in ("risk", "benign"):
        book = yaml.safe_load((ROOT / "tests" / "safety" / "cases" / f"{name}.yaml").read_text("utf-8"))
        for slice_, entry in book.items():
            for template in entry["templates"]:
                if not in_training(slice_, template) or (name == "risk" and (entry["level"] < 2 or slice_ == "forum")):
                    continue
                label = LABELS["0"] if name == "benign" else LABELS["3" if entry["level"] >= 3 else "2"]
                for text in expand(template):
                    parts = re.split(r"(?<=[.!?])\s+", text) if slice_ == "forum" else [text]
                    found += [Row(part, label, template, 4.0) for part in parts]
    return found


def sample() -> list[Row]:
    """What visitors without risk say in the sample corpus, whole and by sentences."""
    found = []
    for line in (ROOT / "src/warmline/sample/conversations.jsonl").read_text("utf-8").splitlines():
        talk = json.loads(line)
        if talk["labels"].get("risk") not in ("0", "1") or talk["labels"].get("kind") == "friend":
            continue
        for turn in talk["messages"]:
            if turn["role"] == "user":
                parts = [turn["content"], *re.split(r"(?<=[.!?])\s+", turn["content"])]
                found += [Row(part, LABELS["0"], talk["id"]) for part in parts if len(part.split()) > 1]
    return found


def counsel(shared: Path) -> list[Row]:
    """Sentences of people who wrote to counsel-chat (MIT, (c) 2020 nbertagnolli) about anything but wanting to die.

    Real distress without danger. Questions in which the words alone find risk, or whose topic is risk, are left out.
    """
    asked: dict[str, tuple[str, str]] = {}
    with open(shared / "counsel_chat" / "20200325_counsel_chat.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = f"{row['questionTitle']}. {row['questionText']}".replace("\xa0", " ")
            asked[row["questionID"]] = (text, row["topic"])
    found = []
    for number, (text, topic) in asked.items():
        if topic in ("suicide", "self-harm") or screen(text, lambda words: Judgement(0.0, 0.0, 0.0)).level >= 2:
            continue
        parts = re.split(r"(?<=[.!?])\s+", text)
        found += [Row(part, LABELS["0"], f"counsel {number}") for part in parts if len(part.split()) > 2]
    return found


def composed(count: int, seed: int) -> list[Row]:
    """Sentences of everyday distress from the grammar of the embedded base, without the themes that touch on dying."""
    sys.path.insert(0, str(ROOT / "training" / "embedded_base"))
    from compose import Composer, Grammar

    composer = Composer(Grammar.load(), seed)
    found: list[Row] = []
    while len(found) < count:
        document = composer.document()
        if document["theme"] in ("hopeless", "helping-a-friend", "hard-memories"):
            continue
        texts = [m["content"] for m in document.get("messages", ()) if m["role"] == "user"]
        if document["kind"] in ("message", "diary"):
            texts = [document["text"]]
        parts = [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text)]
        found += [Row(part, LABELS["0"], "composed") for part in parts if len(part.split()) > 2]
    return found


def rows(shared: Path, seed: int = 17) -> list[Row]:
    return lines() + turns() + frames(seed) + cases() + sample() + counsel(shared) + composed(5000, seed)


LONG = 40
"""Messages of more words are learnt by the windows that the screen will read, not whole."""


def pieces(row: Row) -> list[Row]:
    """The windows of a text as rows with its label."""
    seen = windows(words_of(normalise(row.text).text)) or [words_of(normalise(row.text).text).words]
    return [Row(" ".join(window), row.label, row.group, row.weight / len(seen) ** 0.5) for window in seen]


def by_windows(data: list[Row], strength: float) -> list[Row]:
    """Long messages as windows. Without risk: all of them. At risk: the one that a model of the rest finds worst.

    Where in a long message the danger stands nobody has marked; most of its sentences are about life.
    """
    short = [row for row in data if len(row.text.split()) <= LONG]
    long = [row for row in data if len(row.text.split()) > LONG]
    made = short + [piece for row in long if not row.label["risk"] for piece in pieces(row)]
    model = Weights(fit(made, strength))
    for row in long:
        if row.label["risk"]:
            head = max(place for place, name in enumerate(HEADS) if row.label[name])
            worst = max(pieces(row), key=lambda piece: model.window(tuple(piece.text.split()))[head])
            made.append(Row(worst.text, row.label, row.group, row.weight))
    return made


def table_of(texts: list[Row]) -> list[dict[str, float]]:
    return [features(words_of(normalise(row.text).text).words) for row in texts]


def fit(data: list[Row], strength: float) -> dict[str, Any]:
    """The linear model's document."""
    vectors = DictVectorizer()
    matrix = vectors.fit_transform(table_of(data))
    counts = [row.weight for row in data]
    heads, bias = [], []
    for head in HEADS:
        model = LogisticRegression(C=strength, max_iter=300)
        model.fit(matrix, [row.label[head] for row in data], sample_weight=counts)
        bias.append(round(float(model.intercept_[0]), 3))
        heads.append(model.coef_[0])
    columns = np.stack(heads, 1)
    kept = np.abs(columns).max(1) >= SMALLEST
    names = vectors.get_feature_names_out()[kept]
    weights = {str(n): [round(float(w), 2) for w in ws] for n, ws in zip(names, columns[kept], strict=True)}
    return {"version": VERSION, "heads": list(HEADS), "bias": bias, "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/safety/tables/classifier.json")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="where counsel_chat lies")
    options = parser.parse_args()
    data = by_windows(rows(options.shared), STRENGTH)
    document = fit(data, STRENGTH)
    options.out.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps({"texts": len(data), "features": len(document["weights"]), "bytes": options.out.stat().st_size}))


if __name__ == "__main__":
    main()
