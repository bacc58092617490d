"""Intervals hold the truth as often as they say; worse is caught, equal is passed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from warmline.evaluate.intervals import Interval, bootstrap, difference, mean, share, share_difference

TRIALS = 1000


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


@pytest.mark.parametrize("n", [12, 24, 60])
def test_the_mean_of_paired_differences_is_covered(n: int) -> None:
    rng = np.random.default_rng(2026 + n)
    found = []
    for _ in range(TRIALS):
        hardness = rng.normal(0, 3, n)  # pairs share it, so the differences do not
        found.append(difference(hardness + rng.normal(0.3, 1, n), hardness + rng.normal(0, 1, n)))
    assert 0.93 <= coverage(found, 0.3) <= 0.97


@pytest.mark.parametrize("n", [24, 60])
def test_a_ratio_of_sums_is_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    found = []
    for _ in range(TRIALS):
        tokens = rng.integers(20, 200, n)
        nats = tokens * 0.1 + rng.normal(0, 1, n) * np.sqrt(tokens)
        found.append(
            bootstrap(
                lambda d, nats=nats, tokens=tokens: nats[d].sum(1) / tokens[d].sum(1), n, nats.sum() / tokens.sum(), 800
            )
        )
    assert 0.93 <= coverage(found, 0.1) <= 0.97


@pytest.mark.parametrize("n", [24, 60, 123])
def test_shares_are_covered(n: int) -> None:
    """Exactly, for a share has only n + 1 outcomes; on average over true shares, as Wilson's interval promises."""
    found = [share([True] * k + [False] * (n - k)) for k in range(n + 1)]
    truths = np.linspace(0.05, 0.95, 181)
    covered = [
        sum(binom.pmf(k, n, p) for k, one in enumerate(found) if one.low <= p <= one.high) for p in truths.tolist()
    ]
    assert 0.93 <= np.mean(covered) <= 0.97
    assert min(covered) > 0.9


@pytest.mark.parametrize("n", [24, 60])
def test_differences_of_shares_are_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    found = []
    for _ in range(TRIALS):
        before = rng.random(n) < 0.4
        after = np.where(rng.random(n) < 0.25, rng.random(n) < 0.8, before)
        found.append(share_difference(after.tolist(), before.tolist()))
    assert 0.93 <= coverage(found, 0.25 * (0.8 - 0.4)) <= 0.97


@pytest.mark.parametrize("kind", ["number", "share"])
def test_worse_is_caught_and_equal_passed(kind: str) -> None:
    """A clearly worse system over 60 questions, and one that differs by chance alone."""
    rng = np.random.default_rng(4)
    caught = passed = 0
    for _ in range(100):
        hardness = rng.normal(0, 1, 60)
        if kind == "number":
            worse, equal, before = (hardness + rng.normal(m, 0.6, 60) for m in (-0.5, 0, 0))
            found = difference(worse, before), difference(equal, before)
        else:
            worse, equal, before = (rng.random(60) < p for p in (0.5, 0.9, 0.9))
            found = share_difference(worse.tolist(), before.tolist()), share_difference(equal.tolist(), before.tolist())
        caught += found[0].side() == "lower"
        passed += found[1].side() != "lower"
    assert caught >= 95
    assert passed >= 95


def test_few_items_show_nothing() -> None:
    assert mean([1.0] * 7).side() == "unclear"
    assert mean([1.0] * 8).side() == "higher"
    assert mean([1.0] * 8).side(of=1.0) == "unclear"
    assert mean([3.0]) == Interval(3.0, 3.0, 3.0, 1)


def test_the_same_numbers_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=20).tolist()
    assert mean(values) == mean(values)
