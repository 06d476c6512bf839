"""How a sweep is cut into tiles that, with its candidates, fit the memory budget; and in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.rounding import Precision
from unseen.retrieval.engine.vectors import Vectors, norms_of

STRIPE = 64  # products that are looked at together: few stripes hold anything near
CENTRES = 256  # most groups of like vectors, found on SAMPLE vectors for each
SAMPLE = 64
SIDE = 1024  # most rows and columns of a tile, whose products should stay in a cache


@dataclass(frozen=True)
class Tiling:
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


def tile_sweep(inputs: SearchInputs, k: int, memory_budget: int, precision: Precision) -> Tiling:
    """Cut the sweep so that tiles and candidates fit the budget."""
    free = memory_budget / (16 * torch.get_num_threads())
    side = min(SIDE, max(STRIPE, 2 ** int(math.log2(max(1.0, math.sqrt(free))))))
    capacity = 2 * k + 256
    panels = -(-len(inputs.queries) // side)
    together = max(1, min(panels, memory_budget // 2 // (side * capacity * 8)))
    return Tiling(precision, side, capacity, together, inputs.symmetric and together == panels)


def like_with_like(vectors: Vectors, side: int) -> Tensor:
    """`(N,)` positions in an order that makes panels of `side` rows alike.

    Euclidean: by norm, whose range within a panel widens the error bound of its scores. Else: near vectors
    together (around the nearest of some centres, one for each panel, like centres next to each other), so
    that a query meets its neighbours early.
    """
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    if vectors.similarity == "euclidean":
        return order[(norms_of(vectors.raw) * vectors.factor)[order].argsort(stable=True)]
    count = min(len(vectors) // side, CENTRES)
    if count < 2:
        return order
    sample = vectors.raw[order[: SAMPLE * count]]
    centres = torch.nn.functional.normalize(sample[:count])
    nearest = (sample @ centres.T).argmax(dim=1)
    centres = torch.nn.functional.normalize(torch.zeros_like(centres).index_add_(0, nearest, sample))
    nearest = torch.cat([(block @ centres.T).argmax(dim=1) for block in vectors.raw.split(8192)])
    return order[_chained(centres)[nearest[order]].argsort(stable=True)]


def _chained(centres: Tensor) -> Tensor:
    """`(C,)` ranks of centres in a chain, each followed by the nearest one that is left."""
    products, current = centres @ centres.T, torch.tensor(0)
    rank = torch.empty(len(centres), dtype=torch.int64)
    for place in range(len(centres)):
        rank[current] = place
        products[:, current] = -torch.inf
        current = products[current].argmax()
    return rank
