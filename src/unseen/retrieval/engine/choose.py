"""Sweep or all pairs in float64, and in which precision to sweep: the speed of products here against the
candidates that these vectors leave."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from unseen.retrieval.engine.exact import fits_whole
from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.rounding import (
    DTYPES,
    Precision,
    error_terms,
    round_to,
    seconds_per_product,
)
from unseen.retrieval.engine.tiling import SIDE, tile_sweep
from unseen.retrieval.engine.vectors import Vectors

SMALL = 2**32  # multiplications below which choosing costs more than it saves
QUERIES, ITEMS = 32, 512  # sample sizes
SCORES = 2**24  # no more scores than these at a time
FIRST = 64  # no more items does a query meet before it looks how near the nearest are
# Of one thread, as measured on a core with AVX-512:
SCORE_SECONDS = 1.4e-8  # to round a float64 score and to pick the best of many
SCAN_SECONDS = 1.2e-9  # to look at a product
CANDIDATE_SECONDS = 9e-8  # to find and keep a candidate
ELEMENT_SECONDS = 4e-10  # per element of a candidate compared in float64


def choose_precision(
    inputs: SearchInputs, depth: Tensor, memory_budget: int
) -> Precision | Literal["float64"]:
    """The precision of least predicted time: of a sweep, or `float64` for all pairs and no sweep."""
    count, width = inputs.gallery.raw.shape
    products = len(inputs.queries) * count * width / (2 if inputs.symmetric else 1)
    if products < SMALL:
        return "float64"
    generator = torch.Generator().manual_seed(0)
    sample = max(4, min(QUERIES, SCORES // count, memory_budget // (64 * count)))
    rows = torch.randint(len(inputs.queries), (sample,), generator=generator)
    items = inputs.gallery.only(torch.randint(count, (ITEMS,), generator=generator))
    queries = inputs.queries.only(rows)
    gaps = _gaps(inputs, queries, rows, depth[rows])
    meetings = _meetings(gaps, depth[rows])
    deepest, pairs, threads = int(depth.max()), products / width, torch.get_num_threads()
    each_pair = width * seconds_per_product(torch.float64) + SCORE_SECONDS / threads

    def seconds(precision: Precision) -> float:
        speed = seconds_per_product(DTYPES[precision])
        if math.isinf(speed):
            return speed
        tiling = tile_sweep(inputs, deepest, memory_budget, precision)
        if tiling is None:
            return math.inf
        rounded = round_to(items, torch.arange(len(items)), len(items), precision)
        asked = round_to(queries, torch.arange(sample), sample, precision)
        base, slope = error_terms(asked, slice(None), rounded)
        margin = (base + slope * rounded.coarseness)[:, None]
        compared = (gaps <= margin).sum(dim=1).double()
        given_up = (compared > tiling.capacity).double().mean().item()
        met = sum((piece <= known + 2 * margin).sum().item() for piece, known in meetings) / sample
        each = met * CANDIDATE_SECONDS + compared.mean().item() * width * ELEMENT_SECONDS
        shared = pairs * SCAN_SECONDS + len(inputs.queries) * each
        return products * speed + shared / threads + len(inputs.queries) * given_up * count * each_pair

    best = min(get_args(Precision), key=seconds)
    all_pairs = len(inputs.queries) * count * each_pair
    if fits_whole(inputs, memory_budget):  # then each product serves two pairs
        all_pairs = pairs * (each_pair + SCORE_SECONDS / threads)
    return "float64" if all_pairs <= seconds(best) else best


def _meetings(gaps: Tensor, depth: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a query of gaps `(n, G)` meets, piece by piece `(n, m)`, and how near it then knows its neighbours
    to be, `(n, 1)`.

    The nearest `SIDE` come first, in any order; the `depth[i]`-th of those met before is what it knows.
    """
    near, places = gaps.topk(min(SIDE, gaps.shape[1]), dim=1, largest=False)
    far = gaps.scatter(1, places, torch.inf)
    near = near[:, torch.randperm(near.shape[1], generator=torch.Generator().manual_seed(0))]
    pieces, stop = [(far, torch.zeros(len(gaps), 1))], near.shape[1]
    while stop > FIRST:
        start = stop // 2
        known = near[:, :start].sort(dim=1).values.gather(1, (depth - 1).clamp(max=start - 1)[:, None])
        pieces.append((near[:, start:stop], known.masked_fill(depth[:, None] > start, torch.inf)))
        stop = start
    return [*pieces, (near[:, :stop], torch.full((len(gaps), 1), torch.inf))]


def _gaps(inputs: SearchInputs, queries: Vectors, rows: Tensor, depth: Tensor) -> Tensor:
    """How far each item's score lies below the query's `depth[i]`-th, `(n, G)` (negative for the nearer
    ones)."""
    gallery, factor = inputs.gallery, inputs.gallery.factor.float()
    scaled = queries.scaled(0, len(queries)).float()
    blocks = []
    for start in range(0, len(gallery), 8192):
        # Scaled as scores, not as vectors: new memory is slower than arithmetic.
        items, scale = gallery.raw[start : start + 8192], factor[start : start + 8192]
        block = (scaled @ items.T).mul_(scale)
        if gallery.similarity == "euclidean":
            block -= (items.norm(dim=1) * scale).square() / 2
        blocks.append(block)
    scores = torch.cat(blocks, dim=1)
    own = inputs.own[rows]
    here = (own >= 0).nonzero().squeeze(1)
    scores[here, own[here]] = -torch.inf
    return scores.topk(int(depth.max()), dim=1).values.gather(1, depth[:, None] - 1) - scores
