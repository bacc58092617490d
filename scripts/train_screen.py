"""Train the small classifier beside the lexicon from text written for this project, and write its weights as JSON.

    python scripts/train_screen.py [--out src/warmline/safety/tables/classifier.json]

Text: `scripts/screen_text.yaml` (combined by chance, seeded), what visitors without risk say in the sample corpus,
and the half of the templates in `tests/safety/cases` that
`warmline.safety.classify.in_training` names. No other text: the weights may be shipped under the project's licence.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import yaml
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from warmline.safety.classify import HEADS, features, in_training
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of

PER_FRAME = 40
SMALLEST = 0.03
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
    while match := re.search(r"<([a-z]+)>", frame):
        frame = frame[: match.start()] + dice.choice(lists[match.group(1)]) + frame[match.end() :]
    return " ".join(frame.split())


def rows(seed: int = 17) -> list[tuple[str, dict[str, int]]]:
    """Texts with their labels, one per head."""
    dice = random.Random(seed)
    book = yaml.safe_load((ROOT / "scripts" / "screen_text.yaml").read_text("utf-8"))
    found: list[tuple[str, dict[str, int]]] = []
    labels = {
        "risk": {"risk": 1, "active": 0, "method": 0},
        "active": {"risk": 1, "active": 1, "method": 0},
        "method": {"risk": 1, "active": 1, "method": 1},
        "calm": {"risk": 0, "active": 0, "method": 0},
    }
    for kind, label in labels.items():
        for frame in book[kind]:
            seen = {combine(frame, book["lists"], dice) for _ in range(PER_FRAME)}
            found += [(text, label) for text in sorted(seen)]
    for name in ("risk", "benign"):
        cases = yaml.safe_load((ROOT / "tests" / "safety" / "cases" / f"{name}.yaml").read_text("utf-8"))
        for slice_, entry in cases.items():
            for template in entry["templates"]:
                if not in_training(slice_, template) or (name == "risk" and (entry["level"] < 2 or slice_ == "forum")):
                    continue
                for text in expand(template):
                    parts = re.split(r"(?<=[.!?])\s+", text) if slice_ == "forum" else [text]
                    risky = name == "risk"
                    label = {"risk": int(risky), "active": int(risky and entry["level"] >= 3), "method": 0}
                    found += [(part, label) for part in parts] * 4
    for line in (ROOT / "src/warmline/sample/conversations.jsonl").read_text("utf-8").splitlines():
        talk = json.loads(line)
        if talk["labels"].get("risk") not in ("0", "1") or talk["labels"].get("kind") == "friend":
            continue
        for turn in talk["messages"]:
            if turn["role"] == "user":
                parts = [turn["content"], *re.split(r"(?<=[.!?])\s+", turn["content"])]
                found += [(part, labels["calm"]) for part in parts if len(part.split()) > 1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/safety/tables/classifier.json")
    parser.add_argument("--strength", type=float, default=0.5)
    options = parser.parse_args()
    data = rows()
    vectors = DictVectorizer()
    table = vectors.fit_transform([features(words_of(normalise(text).text).words) for text, _ in data])
    names = vectors.get_feature_names_out()
    weights: dict[str, list[float]] = {}
    bias = []
    for place, head in enumerate(HEADS):
        truth = np.array([label[head] for _, label in data])
        model = LogisticRegression(C=options.strength, max_iter=400, class_weight=None)
        model.fit(table, truth)
        bias.append(round(float(model.intercept_[0]), 3))
        for name, weight in zip(names, model.coef_[0], strict=True):
            if abs(weight) >= SMALLEST:
                weights.setdefault(name, [0.0] * len(HEADS))[place] = round(float(weight), 2)
    document = {"version": 1, "heads": list(HEADS), "bias": bias, "weights": dict(sorted(weights.items()))}
    options.out.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps({"texts": len(data), "features": len(weights), "bytes": options.out.stat().st_size}))


if __name__ == "__main__":
    main()
