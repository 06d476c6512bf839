"""How a sweep is cut, so that its tiles and candidates fit the memory budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from unseen.retrieval.problem import Problem
from unseen.retrieval.rounding import Precision

STRIPE = 64  # products that are looked at together: few stripes hold anything near
SIDE = 1024  # most rows and columns of a tile, whose products should stay in a cache


@dataclass(frozen=True)
class Plan:
    """How a sweep is cut.

    Args:
        precision: of the products.
        side: rows and columns of a tile; a multiple of `STRIPE`.
        capacity: candidates that a query may hold.
        together: panels of queries that are under way at once.
        symmetric: whether a tile serves its columns too.
    """

    precision: Precision
    side: int
    capacity: int
    together: int
    symmetric: bool


def plan_sweep(problem: Problem, k: int, memory_budget: int, precision: Precision) -> Plan:
    """Cut the sweep so that tiles and candidates fit the budget."""
    free = memory_budget / (16 * torch.get_num_threads())
    side = min(SIDE, max(STRIPE, 2 ** int(math.log2(max(1.0, math.sqrt(free))))))
    capacity = 2 * k + 256
    panels = -(-len(problem.queries) // side)
    together = max(1, min(panels, memory_budget // 2 // (side * capacity * 8)))
    return Plan(precision, side, capacity, together, problem.symmetric and together == panels)
