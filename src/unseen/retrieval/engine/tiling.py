"""How a sweep is cut into tiles that, with its candidates, fit the memory budget; and in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.rounding import DTYPES, Precision
from unseen.retrieval.engine.vectors import Vectors, norms_of

STRIPE = 64  # products that are looked at together: few stripes hold anything near
CENTRES = 256  # most groups of like vectors, found on SAMPLE vectors for each
SAMPLE = 64
SIDE = 1024  # most rows and columns of a tile, whose products should stay in a cache
ROW_BYTES = 64  # of a rounded vector: its place, norm, residual and half square, while they are made


@dataclass(frozen=True)
class Tiling:
    """How a sweep is cut.

    Args:
        precision: of the products.
        side: rows and columns of a tile; a multiple of `STRIPE`.
        capacity: candidates that a query may hold.
        together: panels of queries that are under way at once.
        piece: queries of a panel that are decided at once.
        symmetric: whether a tile serves its columns too.
    """

    precision: Precision
    side: int
    capacity: int
    together: int
    piece: int
    symmetric: bool


def tile_sweep(inputs: SearchInputs, k: int, memory_budget: int, precision: Precision) -> Tiling | None:
    """Cut the sweep so that it fits the budget: half for rounded copies and candidates, an eighth each for
    tiles and for deciding, a quarter for what the caller keeps. None if copies alone are too large."""
    rows, width = len(inputs.gallery), inputs.gallery.raw.shape[1]
    rows += 0 if inputs.symmetric else len(inputs.queries)
    copies = rows * (width * DTYPES[precision].itemsize + ROW_BYTES)
    if copies > memory_budget * 3 // 8:
        return None
    free, capacity = memory_budget // 2 - copies, 2 * k + 256
    threads = torch.get_num_threads()
    side = min(SIDE, 2 ** int(math.log2(max(1.0, math.sqrt(memory_budget / (32 * threads))))))
    while side > STRIPE and side * capacity * 8 > free:
        side //= 2
    side = max(side, STRIPE)
    panels = -(-len(inputs.queries) // side)
    together = max(1, min(panels, free // (side * capacity * 8)))
    piece = max(1, min(side, memory_budget // 8 // threads // (capacity * 64)))
    return Tiling(precision, side, capacity, together, piece, inputs.symmetric and together == panels)


def like_with_like(vectors: Vectors, side: int) -> Tensor:
    """`(N,)` positions in an order that makes panels of `side` rows alike.

    Euclidean: by norm, whose range within a panel widens the error bound of its scores. Else: near vectors
    together (around the nearest of some centres, one for each panel, like centres next to each other), so
    that a query meets its neighbours early.
    """
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    if vectors.similarity == "euclidean":
        return order[(norms_of(vectors.raw) * vectors.factor)[order].argsort(stable=True)]
    count = min(len(vectors) // max(side, 16 * SAMPLE), CENTRES)
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
