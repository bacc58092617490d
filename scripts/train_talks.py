"""Fit how the turns of a conversation count together, from the conversations of `scripts/screen_talks`.

    python scripts/train_talks.py [--out src/warmline/safety/tables/talks.json]

Run it after `train_screen.py` and `train_encoder.py`, whose weights it reads the turns with.
It fits on a fifth of the conversations, of which those have learnt nothing, and prints what another fifth shows; each
as written and once more behind calm ones.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from train_screen import ROOT, Talk, talks

from warmline.safety.classify import CALM, HEADS, WORST, Odds, Talks, within
from warmline.safety.screen import screen_turn

VERSION = 2
STRENGTH = 0.03


def read(talk: Talk) -> list[np.ndarray]:
    """After each turn what `warmline.safety.classify.Talks` weighs: the worst log-odds so far, those of the whole."""
    told: list[Odds] = []
    found = []
    for place, turn in enumerate(talk.turns):
        finding = screen_turn(turn, talk.turns[:place], told)
        told.append(finding.odds or (CALM,) * 3)
        found.append(np.append(np.array(Talks.worst(told)).ravel(), within(finding.whole)))
    return found


def longer(some: list[Talk], seed: int = 4) -> list[Talk]:
    """The conversations, and each once more with one or two calm ones before it.

    Written ones have four to ten turns. Of more turns the worst are worse by chance, which is no sign of anything.
    """
    dice = random.Random(seed)
    calm = [talk for talk in some if not max(talk.reached)]
    made = list(some)
    for talk in some:
        before = dice.sample(calm, dice.choice((1, 2)))
        turns = sum((other.turns for other in before), ()) + talk.turns
        made.append(Talk(turns, (0,) * (len(turns) - len(talk.turns)) + talk.reached))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/safety/tables/talks.json")
    options = parser.parse_args()
    parts = {part: [talk for talk in talks() if talk.part == part] for part in ("fit", "limit")}
    every = [(part, talk, read(talk)) for part, some in parts.items() for talk in longer(some)]
    fitted = [(talk, rows) for part, talk, rows in every if part == "fit"]
    seen = [pair for talk, rows in fitted for pair in zip(rows, talk.reached, strict=True)]
    clear = [(row, reached == 2) for row, reached in seen if reached != 1]
    # no sign may lower it: what the fit would count against risk is left out, until nothing is
    kept = np.ones(len(HEADS) * WORST + 1, bool)
    while True:
        model = LogisticRegression(C=STRENGTH, max_iter=2000)
        model.fit(np.stack([row for row, _ in clear])[:, kept], [label for _, label in clear])
        if (model.coef_[0] >= 0).all():
            break
        kept[np.flatnonzero(kept)[model.coef_[0] < 0]] = False
    weights = np.zeros(len(kept))
    weights[kept] = model.coef_[0]
    bias = float(model.intercept_[0])
    document = {
        "version": VERSION,
        "bias": round(bias, 3),
        "weights": weights[:-1].reshape(len(HEADS), WORST).round(3).tolist(),
        "whole": round(float(weights[-1]), 3),
    }
    options.out.write_text(json.dumps(document) + "\n", "utf-8")
    worst = {
        name: sorted(
            max(float(row @ weights) + bias for row in rows)
            for part, talk, rows in every
            if part == "limit" and max(talk.reached) == reached
        )
        for name, reached in (("calm", 0), ("risk", 2))
    }
    shown = {}
    for share in (0.02, 0.05, 0.1):
        limit = worst["calm"][-1 - int(share * len(worst["calm"]))]
        found = sum(odds > limit for odds in worst["risk"])
        shown[f"{share:.0%} of calm"] = {"odds": round(limit, 2), "found": f"{found} of {len(worst['risk'])}"}
    print(json.dumps({"conversations": len(every), "limit": {k: len(v) for k, v in worst.items()}, **shown}))


if __name__ == "__main__":
    main()
