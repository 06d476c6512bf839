"""What seeds, data sets and classes allow to say about two methods. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

EXACT_UP_TO = 20
"""Differences up to which all sign flips are counted (2¹⁹ of them, by symmetry)."""
TINY = 1e-12
"""A difference of two shares that is no larger is of rounding, and counts as none."""
DRAWS = 100_000
"""Sign flips that are drawn where there are too many to count."""


class Interval(NamedTuple):
    """Where a mean may lie.

    Args:
        low: lower end.
        high: upper end.
    """

    low: float
    high: float


class Verdict(StrEnum):
    """What an interval says against a margin that was set beforehand."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    CANNOT_TELL = "cannot tell"


class SignFlip(NamedTuple):
    """Result of a sign-flip test.

    Args:
        p_value: two-sided.
        smallest_p: that so many differences can give, none of them 0.
        is_exact: whether all sign flips were counted.
    """

    p_value: float
    smallest_p: float
    is_exact: bool


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """Student's interval of a mean; of paired differences it is the paired one.

    `mean ± t(1 − α/2; n − 1) · s/√n`. Its coverage is exact for normal values at every n ≥ 2.

    Args:
        values: `(n,)`.
        level: of the interval, 1 − α.

    Returns:
        None for fewer than two values, and where all are equal: that comes from a metric of few steps, and
        says nothing of how far the next value would lie.
    """
    given = np.asarray(values, dtype=float)
    if len(given) < 2 or np.ptp(given) <= TINY * max(1.0, np.abs(given).max()):
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(given) - 1)) * given.std(ddof=1) / len(given) ** 0.5
    return Interval(float(given.mean() - half), float(given.mean() + half))


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the lowest and the highest quarter (whole values; of fewer than four it is the mean).

    Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, NeurIPS 2021.
    """
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25))


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """P(A > B) in one cell: share of all pairs of runs in which ours is higher; a tie counts half.

    The Mann–Whitney statistic over the number of pairs (Agarwal et al. 2021); over cells, its mean.

    Args:
        ours: `(n,)`.
        theirs: `(m,)`.
    """
    gain = np.subtract.outer(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float))
    return float(((gain > TINY) + 0.5 * (np.abs(gain) <= TINY)).mean())


def sign_flip_test(differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> SignFlip:
    """Whether independent differences are symmetric about 0 (Fisher's randomisation test of their mean).

    Under the hypothesis each sign is as likely as the other. The p value is the share of all sign flips whose
    mean is as far from 0 as the observed one, or farther. It assumes no distribution, and never rejects a
    true hypothesis more often than it says.

    Args:
        differences: `(n,)`, one for each independent unit: a cell, not a seed in it.
        draws: sign flips that are drawn where n is above `EXACT_UP_TO`; the observed one counts with them.
        seed: of the draws.

    Raises:
        ValueError: there is no difference.
    """
    given = np.asarray(differences, dtype=float)
    if not len(given):
        raise ValueError("The sign-flip test needs at least one difference, got none.")
    cells = len(given)
    given = given[np.abs(given) > TINY]  # a flip of 0 changes nothing
    smallest = 2.0 ** (1 - cells) if len(given) <= EXACT_UP_TO else 1 / (1 + draws)
    if not len(given):
        return SignFlip(1.0, smallest, True)
    # Sums in another order differ in their last digits: equal ones must count as equal.
    observed = abs(given.sum()) - 1e-9 * np.abs(given).sum()
    if len(given) <= EXACT_UP_TO:
        share = float((np.abs(_all_sums(given)) >= observed).mean())
        return SignFlip(share, smallest, True)
    random = np.random.default_rng(seed)
    as_far = 0
    for start in range(0, draws, 10_000):
        signs = random.integers(0, 2, (min(10_000, draws - start), len(given)), dtype=np.int8)
        as_far += int((np.abs((2.0 * signs - 1) @ given) >= observed).sum())
    return SignFlip((1 + as_far) / (1 + draws), smallest, False)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's step-down correction, in the order given.

    Rejecting those below α keeps the probability of any false rejection below α, however the tests depend on
    each other (Holm, A simple sequentially rejective multiple test procedure, 1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def verdict(interval: Interval | None, margin: float) -> Verdict:
    """What an interval of `ours − theirs` says, where higher is better.

    Better: all of it lies above `margin`. Worse: all below `−margin`. Equivalent: all between. Otherwise, and
    without an interval, one cannot tell. With an interval of level 1 − α each of the three is wrongly said
    with a probability of at most α/2 (two one-sided tests: Schuirmann 1987).

    Args:
        interval: none where there is none.
        margin: smallest difference that matters; 0 leaves nothing equivalent.
    """
    if interval is None:
        return Verdict.CANNOT_TELL
    if interval.low > margin:
        return Verdict.BETTER
    if interval.high < -margin:
        return Verdict.WORSE
    if -margin < interval.low and interval.high < margin:
        return Verdict.EQUIVALENT
    return Verdict.CANNOT_TELL


def _all_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(2ⁿ⁻¹,)` sums under all signs but that of the first value, which symmetry spares."""
    sums = values[:1]
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums
