"""Train the small classifier beside lint's patterns from text written for this project, and write its weights as JSON.

    python scripts/train_lint.py [--check] [--out src/warmline/corpus/lint_weights.json]

Text: the lines of `scripts/lint_lines` (a file a rule), what `scripts/train_screen.py` has of what people at risk and
people without risk write (the head `no-resources`), replies of the sample, and, as real answers, two thirds of
counsel-chat (MIT). Thresholds: the other third of counsel-chat, and ESConv, which is not trained on. `--check` holds
out a third of the lines in turn and says what is found of it; it writes nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import yaml
from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

from train_screen import cases
from train_screen import lines as screen_lines

from warmline.corpus.lint import rules, straight
from warmline.corpus.lint_classify import LONGEST, Weights, features, windows
from warmline.corpus.read import read

HEADS = (*sorted(file.stem for file in (ROOT / "scripts" / "lint_lines").glob("*.txt")), "no-resources")
ASKED = "no-resources"
LINE_WEIGHT = 3.0
BUDGET = 0.001
"""The share of real turns a head may flag by itself."""
ASKED_BUDGET = 0.01
"""The same for what people write: some of them do speak of suicide."""
CLAIMS = 1.5
"""The least log-odds of a claim. Real answerers' claims are true, so only replies of the sample can raise it."""
MARGIN = 0.3
"""Added to every threshold but that for questions: with it 3 % of near misses are flagged whose line was held out, of
3.7 % without; a third of the planted lines of the same fold is found, .03 fewer."""
REAL = 8_000
"""Sentences of real answers, and as many of what people write."""
SMALLEST = 0.04


@dataclass(frozen=True)
class Row:
    """One window with, by head, 1, 0, or None where it says nothing. Rows of a group are held out together."""

    words: tuple[str, ...]
    labels: dict[str, int]
    group: str
    weight: float


def fillings(line: str, dice: random.Random) -> list[str]:
    """Fillings of a line with [a|b] choices: each choice at least twice, together by chance."""
    parts = re.split(r"\[([^\]]*)\]", line)
    options = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    count = max(map(len, options))
    if count == 1:
        return [line]
    columns = []
    for choice in options:
        column = [choice[n % len(choice)] for n in range(2 * count)]
        dice.shuffle(column)
        columns.append(column)
    return sorted({" ".join("".join(texts).split()).replace(" ,", ",") for texts in zip(*columns, strict=True)})


def whole(text: str) -> tuple[str, ...]:
    """All words of a line as one window."""
    return next((words for words, _, _ in windows(re.sub(r"[.!\n]+(?=\s|$)", "", straight(text)))), ())


def runs(text: str, length: int = 5) -> set[tuple[str, ...]]:
    """Every so many words in a row of a text."""
    words = re.findall(r"[a-z]+", straight(text).replace("'", ""))
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


@cache
def measuring() -> frozenset[tuple[str, ...]]:
    """Five words in a row that stand in the list that measures: no line with any of them is trained on."""
    book = yaml.safe_load((ROOT / "tests" / "corpus" / "fresh4.yaml").read_text("utf-8"))
    cases = [case for lines in book["planted"].values() for case in lines] + book["clean"]
    return frozenset(
        run for case in cases for text in ([case] if isinstance(case, str) else case) for run in runs(text)
    )


def lint_lines(seed: int = 5) -> list[Row]:
    """The lines of `scripts/lint_lines`, filled, without what the measuring list says in the same words."""
    dice = random.Random(seed)
    found = []
    for file in sorted((ROOT / "scripts" / "lint_lines").glob("*.txt")):
        for line in file.read_text("utf-8").splitlines():
            if line[:2] not in ("+ ", "- "):
                continue
            texts = [text for text in fillings(line[2:], dice) if not runs(text) & measuring()]
            if not texts:
                continue
            # A planted line says nothing about the other rules: what blames may well dismiss, too.
            labels = {file.stem: 1} if line[0] == "+" else {head: 0 for head in HEADS if head != ASKED}
            weight = LINE_WEIGHT / len(texts) ** 0.25
            found += [Row(whole(text), labels, line, weight) for text in texts]
    return [row for row in found if row.words]


def asked(shared: Path) -> list[Row]:
    """What people write who are at risk, and who are not; of counsel-chat what has nothing to do with dying or harm."""
    found = [
        Row(whole(row.text), {ASKED: row.label["risk"]}, row.group, min(row.weight, 3.0))
        for row in (*screen_lines(), *cases())
    ]
    for text in questions(shared):
        if not _DARK.search(text):
            found += [Row(words, {ASKED: 0}, "real", 1.0) for words in sentences(text)]
    random.Random(3).shuffle(found)
    return [row for row in found[:REAL] if row.words]


_DARK = re.compile(r"suicid|kill|\bdie|dead|death|dying|harm|hurt|\bcut|alive|\bend (?:it|my)|overdos", re.I)


def sentences(text: str) -> list[tuple[str, ...]]:
    return [words for words, _, _ in windows(straight(text))]


def answers(shared: Path) -> list[tuple[str, str]]:
    """The different answers of counsel-chat with the number of their question."""
    found = {}
    with open(shared / "counsel_chat" / "20200325_counsel_chat.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = re.sub(r"<[^>]*>", " ", row["answerText"]).replace("\xa0", " ").strip()
            if text:
                found.setdefault(text, row["questionID"])
    return list(found.items())


def held_out(question: str) -> bool:
    return hashlib.sha256(question.encode()).digest()[0] % 3 == 0


def questions(shared: Path) -> list[str]:
    with open(shared / "counsel_chat" / "20200325_counsel_chat.csv", encoding="utf-8", newline="") as file:
        found = {row["questionText"].replace("\xa0", " "): row["questionID"] for row in csv.DictReader(file)}
    return [text for text, question in found.items() if not held_out(question)]


def real(shared: Path) -> list[Row]:
    """Sentences of the training part of counsel-chat and of the sample, by chance as many as `REAL`.

    What counsel-chat's answerers claim of themselves is true, so their sentences say nothing about claims.
    """
    calm = {head: 0 for head in HEADS if head != ASKED}
    own = {head: 0 for head in calm if not head.startswith("claims")}
    texts = [(text, own) for text, question in answers(shared) if not held_out(question)]
    texts += [(m.content, calm) for talk in read("sample") for m in talk.messages if m.role == "assistant"]
    random.Random(3).shuffle(texts)
    found: list[Row] = []
    for text, labels in texts:
        found += [Row(words, labels, "real", 1.0) for words in sentences(text)]
        if len(found) > REAL:
            break
    return found


def esconv(shared: Path) -> list[str]:
    found = []
    for line in (shared / "esconv" / "valid.jsonl").read_text("utf-8").splitlines():
        found += [turn["text"] for turn in json.loads(line)["dialog"] if turn["speaker"] == "sys"]
    return found


def table_of(found: list[set[str]], names: dict[str, int]) -> Any:
    columns = [[names[name] for name in row if name in names] for row in found]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.concatenate([np.array(c, np.int64) for c in columns])
    return scipy.sparse.csr_matrix((np.ones(len(flat)), flat, ends), (len(found), len(names)))


def fit(rows: list[Row], strength: float) -> dict[str, Any]:
    """All heads at once: logistic losses, each over the rows that say something about it."""
    found = [features(row.words) for row in rows]
    count = Counter(name for names in found for name in names)
    names = {name: at for at, name in enumerate(sorted(name for name, seen in count.items() if seen > 3))}
    matrix = table_of(found, names)
    transposed = matrix.T.tocsr()
    target = np.array([[row.labels.get(head, 0) for head in HEADS] for row in rows], float)
    mass = np.array([[row.weight if head in row.labels else 0.0 for head in HEADS] for row in rows])
    shape = (len(names) + 1, len(HEADS))

    def loss(flat: Any) -> tuple[float, Any]:
        weights = flat.reshape(shape)
        odds = matrix @ weights[:-1] + weights[-1]
        value = (mass * (np.logaddexp(0.0, odds) - target * odds)).sum() + 0.5 / strength * (weights[:-1] ** 2).sum()
        wrong = mass * (1.0 / (1.0 + np.exp(-np.clip(odds, -30, 30))) - target)
        slope = np.vstack([transposed @ wrong + weights[:-1] / strength, wrong.sum(0)])
        return value, slope.ravel()

    best = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 80, "maxcor": 8})
    weights = best.x.reshape(shape)
    kept = np.abs(weights[:-1]).max(1) >= SMALLEST
    return {
        "version": 1,
        "heads": list(HEADS),
        "bias": [round(float(x), 3) for x in weights[-1]],
        "thresholds": [0.0] * len(HEADS),
        "features": [name for name, at in names.items() if kept[at]],
        "weights": np.rint(weights[:-1][kept] * 100).astype(int).ravel().tolist(),
    }


def highest(model: Weights, text: str) -> Any:
    """The highest log-odds of every head over the windows of a text."""
    odds = [model.odds(words[:LONGEST]) for words in sentences(text)]
    return np.max(odds, 0) if odds else np.full(len(HEADS), -30.0)


def thresholds(model: Weights, shared: Path, budget: float) -> list[float]:
    """By head, the lowest log-odds with which no more than the budget of real turns is flagged."""
    other = [text for text, question in answers(shared) if held_out(question)]
    replies = np.array([highest(model, text) for text in (*other, *esconv(shared))])
    own = [m.content for talk in read("sample") for m in talk.messages if m.role == "assistant"]
    claims = np.array([highest(model, text) for text in own])
    asking = np.array([highest(model, text) for text in seekers(shared)])
    held = np.array([highest(model, case) for rule in rules() for case in rule.hold if isinstance(case, str)])
    found = []
    for at, head in enumerate(HEADS):
        # no reply that a rule's table says must not fire
        column, share, least = replies, budget, max(0.0, float(held[:, at].max()) + 0.02)
        if head == ASKED:
            column, share, least = asking, ASKED_BUDGET, 0.0
        elif head.startswith("claims"):
            column, least = claims, max(least, CLAIMS)
        margin = 0.0 if head == ASKED else MARGIN
        found.append(round(max(least, float(np.quantile(column[:, at], 1 - share))) + margin, 2))
    return found


def seekers(shared: Path) -> list[str]:
    lines = (shared / "esconv" / "valid.jsonl").read_text("utf-8").splitlines()
    return [turn["text"] for line in lines for turn in json.loads(line)["dialog"] if turn["speaker"] == "usr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/corpus/lint_weights.json")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    written, rest = lint_lines(), asked(options.shared) + real(options.shared)
    texts = {"planted": sum(1 in row.labels.values() for row in written), "near": 0, "rest": len(rest)}
    texts["near"] = len(written) - texts["planted"]
    if options.check:
        third = {group: n % 3 for n, group in enumerate(sorted({row.group for row in written}))}
        for part in range(3):
            model = Weights(fit([r for r in written if third[r.group] != part] + rest, options.strength))
            least = np.array(thresholds(model, options.shared, options.budget))
            seen: dict[str, list[bool]] = {}
            for row in (row for row in written if third[row.group] == part):
                head = next((h for h, label in row.labels.items() if label), "near misses")
                seen.setdefault(head, []).append(bool((model.odds(row.words) >= least)[:-1].any()))
            print(json.dumps({head: round(sum(hits) / len(hits), 3) for head, hits in sorted(seen.items())}))
        return
    document = fit(written + rest, options.strength)
    document["thresholds"] = thresholds(Weights(document), options.shared, options.budget)
    options.out.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(texts | {"features": len(document["features"]), "bytes": options.out.stat().st_size}))
    print(json.dumps(dict(zip(HEADS, document["thresholds"], strict=True))))


if __name__ == "__main__":
    main()
