"""The nearest of each query in bounded memory: by which search, and for how many queries at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from unseen.retrieval.engine.choose import choose_precision
from unseen.retrieval.engine.exact import blocked_search, float64_search
from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.rounding import Precision
from unseen.retrieval.engine.tiling import tile_sweep
from unseen.retrieval.engine.vectors import full_precision

AnyPrecision = Precision | Literal["float64", "auto"]
PRECISIONS = (*get_args(Precision), "float64", "auto")
LEAST = 2**18  # bytes of a budget: with fewer, a search is no smaller and takes for ever
FEWEST = 64  # queries at once, whatever the budget: fewer cost more time than they save memory
ENTRY_BYTES = 128  # of a neighbour while it is turned into metrics


def nearest_in_parts(
    inputs: SearchInputs, depth: Tensor, memory_budget: int, precision: AnyPrecision
) -> Iterator[tuple[Tensor, Tensor]]:
    """At least the `depth[i]` nearest of query i, every query once, in parts that fit the budget.

    Args:
        depth: `(N,)` int64.

    Yields:
        Positions `(n,)` of queries, and their keys `(n, k)`, nearest first.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: wanted one of {', '.join(PRECISIONS)}.")
    width, memory_budget = inputs.gallery.raw.shape[1], max(memory_budget, LEAST)
    for everything, wanted, k in _searches(depth, width, memory_budget, inputs.symmetric):
        with full_precision(inputs.own.device):
            part = inputs if everything else inputs.only(wanted)
            deep = (depth if everything else depth[wanted]).clamp(max=k)
            keys = nearest_keys(part, deep, memory_budget, precision)
        places = wanted if everything else torch.arange(len(wanted), device=wanted.device)
        size = max(1, memory_budget // 8 // (k * ENTRY_BYTES))
        for rows, place in zip(wanted.split(size), places.split(size), strict=True):
            yield rows, keys[place]
        del part, keys  # else both stay while the next part is searched


def _searches(
    depth: Tensor, width: int, memory_budget: int, symmetric: bool
) -> Iterator[tuple[bool, Tensor, int]]:
    """Whether to search all queries at once, which of them are wanted then, and how deep.

    Keys, and copies of queries, take at most a quarter of the budget. Deep queries go apart
    from shallow ones.
    """
    room, count = memory_budget // 4, len(depth)
    apart = 6 * width + 128  # bytes of a query, as given and rounded, where the gallery is another
    if count * (int(depth.max()) * 8 + (0 if symmetric else apart)) <= room:
        yield True, torch.arange(count, device=depth.device), int(depth.max())
        return
    rows = depth.argsort(stable=True)
    depths, start = depth[rows].cpu(), 0
    shallow = int(torch.searchsorted(depths, room // 8 // count, right=True))
    if symmetric and 2 * shallow >= count:  # where a tile serves two pairs, all cost no more than half
        yield True, rows[:shallow], int(depths[shallow - 1])
        start = shallow
    while start < count:
        stop = int(torch.searchsorted(depths, 2 * depths[start], right=True))
        stop = min(stop, start + max(FEWEST, room // (int(depths[stop - 1]) * 8 + apart)))
        yield False, rows[start:stop], int(depths[stop - 1])
        start = stop


def nearest_keys(inputs: SearchInputs, depth: Tensor, memory_budget: int, precision: AnyPrecision) -> Tensor:
    """Keys `(N, k)`, k the greatest depth: a faster search where it pays, all pairs in float64 for what it
    leaves open. The first `depth[i]` are those of the nearest of query i."""
    device, k = inputs.own.device, int(depth.max())
    keys = torch.empty((len(inputs.queries), k), dtype=torch.int64, device=device)
    open_rows = torch.arange(len(inputs.queries), device=device)
    # An accelerator's own top-k is fast, and a sweep that holds most of the gallery saves nothing.
    swept: Precision | Literal["float64"] = "float64"
    if device.type == "cpu" and 8 * depth.double().mean() <= len(inputs.gallery):
        swept = choose_precision(inputs, depth, memory_budget) if precision == "auto" else precision
    tiling = None if swept == "float64" else tile_sweep(inputs, k, memory_budget, swept)
    if tiling is not None:
        # Here, because small searches need not wait for a compiler.
        from unseen.retrieval.engine.sweep import Sweep

        keys, decided = Sweep(inputs, depth, tiling).run()
        open_rows = (~decided).nonzero().squeeze(1)
    # Euclidean distances need differences, not products: only of what products leave.
    if len(open_rows) and (device.type != "cpu" or inputs.queries.similarity == "euclidean"):
        decided = blocked_search(inputs, open_rows, k, memory_budget, keys)
        open_rows = open_rows[~decided]
    if len(open_rows):
        float64_search(inputs, open_rows, k, memory_budget, keys)
    return keys
