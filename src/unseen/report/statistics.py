"""What seeds, data sets and classes allow to say about two methods. Pure functions on arrays."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


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
