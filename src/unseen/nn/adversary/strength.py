"""Schedules of an adversary's strength: pure functions of training progress, so that a run resumes."""

from __future__ import annotations

import math
from collections.abc import Callable

Strength = Callable[[float], float]
"""Training progress `p` in [0, 1] → λ."""


def constant(progress: float, *, maximum: float) -> float:
    """λ = λ_max."""
    return maximum


def linear(progress: float, *, maximum: float) -> float:
    """λ = λ_max · p."""
    return maximum * progress


def dann(progress: float, *, maximum: float) -> float:
    """λ = λ_max (2 / (1 + e^{−10p}) − 1) (Ganin & Lempitsky 2015, section 5.2.2)."""
    return maximum * (2 / (1 + math.exp(-10 * progress)) - 1)
