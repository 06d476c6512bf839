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
from unseen.retrieval.engine.tiling import tile_sweep
from unseen.retrieval.engine.vectors import Vectors

SMALL = 2**33  # multiplications below which choosing costs more than it saves
QUERIES, ITEMS = 48, 512  # sample sizes
SCORES = 2**24  # no more scores than these at a time
SCORE_SECONDS = 5e-9  # to round a float64 score and to pick the best of many
CANDIDATE_SECONDS = 1.5e-8  # to find and keep a candidate
ELEMENT_SECONDS = 1.5e-10  # per element of a candidate compared in float64


def choose_precision(inputs: SearchInputs, k: int, memory_budget: int) -> Precision | Literal["float64"]:
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
    gaps = _gaps(inputs, queries, rows, k)

    each_pair = width * seconds_per_product(torch.float64) + SCORE_SECONDS

    def seconds(precision: Precision) -> float:
        speed = seconds_per_product(DTYPES[precision])
        if math.isinf(speed):
            return speed
        tiling = tile_sweep(inputs, k, memory_budget, precision)
        if tiling is None:
            return math.inf
        rounded = round_to(items, torch.arange(len(items)), len(items), precision)
        asked = round_to(queries, torch.arange(sample), sample, precision)
        base, slope = error_terms(asked, slice(None), rounded)
        margin = (base + slope * rounded.coarseness)[:, None]
        candidates = (gaps <= 2 * margin).sum(dim=1).double().mean().item()
        compared = (gaps <= margin).sum(dim=1).double()
        given_up = (compared > tiling.capacity).double().mean().item()
        meetings = 1 + math.log(max(1.0, count / tiling.side))  # the k best so far change about as often
        each = candidates * meetings * CANDIDATE_SECONDS + compared.mean().item() * width * ELEMENT_SECONDS
        return products * speed + len(inputs.queries) * (each + given_up * count * each_pair)

    best = min(get_args(Precision), key=seconds)
    pairs = len(inputs.queries) * count
    all_pairs = pairs * each_pair
    if fits_whole(inputs, memory_budget):  # then each product serves two pairs
        all_pairs = pairs / 2 * (each_pair + SCORE_SECONDS)
    return "float64" if all_pairs <= seconds(best) else best


def _gaps(inputs: SearchInputs, queries: Vectors, rows: Tensor, k: int) -> Tensor:
    """How far each item's score lies below the query's k-th, `(n, G)` (negative for the nearer ones)."""
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
    return scores.topk(k, dim=1).values[:, -1:] - scores
