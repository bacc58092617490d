"""How sure a number is: 95 % intervals for means, paired differences and shares. Numbers in, numbers out.

Bootstrap intervals take the percentiles that a t distribution would (Hesterberg 2015, section 3.2): plain percentiles
are too narrow for few items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]

SAMPLES = 4000
SEED = 17
FEWEST = 8
"""Fewer items than this show nothing, whatever their interval."""
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval over `n` items."""

    value: float
    low: float
    high: float
    n: int

    def side(self, of: float = 0.0) -> Literal["higher", "lower", "unclear"]:
        """Where the interval lies; `unclear` when it holds `of`, or is of too few items."""
        if self.n < FEWEST or self.low <= of <= self.high:
            return "unclear"
        return "higher" if self.low > of else "lower"


def _t(freedom: int) -> float:
    """The .975 quantile of Student's t (Abramowitz and Stegun 26.7.5); off by at most .01 from 4 degrees on."""
    z, v = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def bootstrap(
    statistic: Callable[[Numbers], Numbers], n: int, value: float, samples: int = SAMPLES, seed: int = SEED
) -> Interval:
    """`statistic` maps drawn positions [samples, n] to one number for each sample. One item has no interval."""
    if n < 2:
        return Interval(value, value, value, n)
    drawn = statistic(np.random.default_rng(seed).integers(0, n, size=(samples, n)))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _t(n - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def mean(values: Sequence[float]) -> Interval:
    """The mean of independent items."""
    x = np.asarray(values, dtype=float)
    return bootstrap(lambda draws: x[draws].mean(1), len(x), float(x.mean()))


def difference(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Mean of after − before, item by item.

    >>> found = difference([3, 5, 4], [2, 4, 3])
    >>> found.value, found.low, found.high
    (1.0, 1.0, 1.0)
    """
    return mean((np.asarray(after, dtype=float) - np.asarray(before, dtype=float)).tolist())


def share(values: Sequence[bool]) -> Interval:
    """How many of a hundred, by Wilson: sensible also for none and for all."""
    n, p = len(values), sum(values) / len(values)
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), n)


def share_difference(after: Sequence[bool], before: Sequence[bool]) -> Interval:
    """Share after − share before, paired (Agresti and Min 2005: half an item is added to each of the four cells).

    >>> found = share_difference([False] * 20, [False] * 20)
    >>> found.value, round(found.high, 2)
    (0.0, 0.09)
    """
    pairs = list(zip(after, before, strict=True))
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = len(pairs) + 2
    middle = (gained - lost) / n
    half = _Z * math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / n) / n
    return Interval((gained - lost) / len(pairs), max(-1.0, middle - half), min(1.0, middle + half), len(pairs))
