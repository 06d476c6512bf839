"""What decides: float64 similarities, of candidates that a faster search found or of all pairs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.keys import LAST, from_keys, to_keys, top
from unseen.retrieval.engine.vectors import Vectors, exact, exact_block, norms_of
from unseen.retrieval.engine.workers import share_out

SPARE = 8  # candidates that a blocked search keeps beyond k: near-ties at rank k rarely exceed them
BLOCK = 1024  # rows, or columns, of a block of float64 similarities
# Bytes of gathered vectors at a time: what stays in a cache is handled several times faster, and smaller
# pieces cost more in Python than in memory.
CACHED = 8 * 2**20


def exact_keys(inputs: SearchInputs, rows: Tensor, candidates: Tensor, k: int, memory_budget: int) -> Tensor:
    """The `k` nearest among candidates, decided in float64.

    Args:
        rows: `(n,)` positions of queries.
        candidates: `(n, c)` positions in the gallery, none of them the query itself; `LAST` for none.

    Returns:
        Keys `(n, k)`, nearest first.
    """
    count, width = candidates.shape[1], inputs.gallery.raw.shape[1]
    room = max(CACHED // 64, min(CACHED, memory_budget // 8 // torch.get_num_threads()))
    vectors = max(1, room // (width * 12))
    size, columns = max(1, vectors // max(count, 1)), max(1, min(count, vectors))
    present = candidates != LAST
    values = torch.full(candidates.shape, -torch.inf, dtype=torch.float32, device=candidates.device)

    def compare(piece: tuple[int, int]) -> None:
        chunk, across = slice(piece[0], piece[0] + size), slice(piece[1], piece[1] + columns)
        known = torch.where(present[chunk, across], candidates[chunk, across], 0)
        values[chunk, across] = exact(inputs.queries, rows[chunk], inputs.gallery, known).float()

    pieces = itertools.product(range(0, len(rows), size), range(0, count, columns))
    if rows.device.type == "cpu":
        share_out(compare, pieces)
    else:
        for piece in pieces:
            compare(piece)
    return top(to_keys(values.masked_fill(~present, -torch.inf), candidates), k)


def score_of(queries: Vectors, rows: Tensor, similarities: Tensor) -> Tensor:
    """From similarity to the score that products give: `q·g` of scaled vectors, less `‖g‖²/2` for
    Euclidean."""
    if queries.similarity == "cosine":
        return similarities
    factor = queries.factor[rows]
    if queries.similarity == "dot":
        return similarities * factor.square()
    squared = (queries.raw[rows].double() * factor[:, None]).square().sum(dim=1)
    return (squared - (similarities * factor).square()) / 2


def blocked_search(inputs: SearchInputs, rows: Tensor, k: int, memory_budget: int, keys: Tensor) -> Tensor:
    """Blocks that keep a few more than `k`, on any device, without waiting for it per block.

    Accelerators multiply float64 at a fraction of the speed of float32, CPUs at half of it: float32 there,
    float64 here, where what is kept then nearly always decides. Writes `keys[rows]`.

    Returns:
        `(n,)` bool: true where nothing that was not kept can be among the k nearest.
    """
    dtype = torch.float64 if rows.device.type == "cpu" else torch.float32
    kept = min(k + SPARE, len(inputs.gallery))
    width = inputs.gallery.raw.shape[1]
    columns = max(1, min(len(inputs.gallery), 16384, memory_budget // 8 // (width * 24)))
    free = memory_budget // 2 - columns * width * 24
    size = min(max(1, free // (columns * 2 * dtype.itemsize + kept * 128 + width * 16)), 4096)
    decided = []
    for chunk in rows.split(size):
        candidates, bound = _candidates(inputs, chunk, kept, columns, dtype)
        nearest = exact_keys(inputs, chunk, candidates, k, memory_budget)
        keys[chunk] = nearest
        furthest = from_keys(nearest[:, -1])[0].double()
        decided.append(score_of(inputs.queries, chunk, furthest) >= bound)
    return torch.cat(decided)


def _candidates(
    inputs: SearchInputs, rows: Tensor, kept: int, columns: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Positions `(n, kept)` of the best scores, and `(n,)` float64: no other item's score is above."""
    queries, gallery = inputs.queries, inputs.gallery
    query = (queries.raw[rows].double() * queries.factor[rows, None]).to(dtype)
    scores = torch.zeros((len(rows), 0), device=query.device, dtype=dtype)
    positions = torch.zeros((len(rows), 0), dtype=torch.int64, device=query.device)
    for start in range(0, len(gallery), columns):
        items = gallery.scaled(start, min(start + columns, len(gallery))).to(dtype)
        block = query @ items.T
        if queries.similarity == "euclidean":
            block -= items.square().sum(dim=1) / 2
        hide_own(block, inputs.own[rows], start)
        best, place = block.topk(min(kept, block.shape[1]), dim=1)
        scores, positions = torch.cat([scores, best], dim=1), torch.cat([positions, place + start], dim=1)
        scores, which = scores.topk(min(kept, scores.shape[1]), dim=1)
        positions = positions.gather(1, which)
    positions = torch.where(positions == inputs.own[rows, None], LAST, positions)
    bound = scores[:, -1].double() + _score_error(queries, rows, gallery, dtype)
    return positions, bound if kept < len(gallery) else torch.full_like(bound, -torch.inf)


def hide_own(block: Tensor, own: Tensor, start: int) -> None:
    """Write -inf where a row of `block` (columns from `start`) meets itself; waits for no device."""
    place = own[:, None] - start
    inside = (place >= 0) & (place < block.shape[1])
    place = place.clamp(0, block.shape[1] - 1)
    block.scatter_(1, place, torch.where(inside, -torch.inf, block.gather(1, place)))


def _score_error(queries: Vectors, rows: Tensor, gallery: Vectors, dtype: torch.dtype) -> Tensor:
    """How far a score in `dtype` may lie from the true one, `(n,)` float64.

    `|fl(q·g) - q·g| <= d u ‖q‖‖g‖` for any order of summation (Higham 2002, section 3.1), u half of the
    type's epsilon; the scaled vectors are themselves rounded (u each), and similarities are rounded to
    float32 at the end (2^-24, of both that are compared).
    """
    width = gallery.raw.shape[1]
    query = (queries.raw[rows].double() * queries.factor[rows, None]).norm(dim=1)
    largest = (norms_of(gallery.raw) * gallery.factor).max()
    reach = (query + largest).square() if queries.similarity == "euclidean" else query * largest
    return reach * ((width + 16) * torch.finfo(dtype).eps + 2.0**-22) + width * 2.0**-120


def float64_search(inputs: SearchInputs, rows: Tensor, k: int, memory_budget: int, keys: Tensor) -> None:
    """Write `keys[rows]`, those of the `k` nearest, from all similarities in float64.

    For small searches, for many neighbours, and for rows with more near-ties than a faster one can hold.
    """
    count, width = inputs.gallery.raw.shape
    if fits_whole(inputs, memory_budget) and len(rows) == count:
        _write_nearest(_whole(inputs), inputs.own, k, memory_budget, keys, rows)
        return
    size = min(max(1, memory_budget * 3 // 8 // (count * 4 + width * 16 + min(BLOCK, count) * 24)), BLOCK)
    for chunk in rows.split(size):
        values = torch.empty((len(chunk), count), dtype=torch.float32, device=rows.device)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            values[:, start:stop] = exact_block(inputs.queries, chunk, inputs.gallery, start, stop)
        _write_nearest(values, inputs.own[chunk], k, memory_budget, keys, chunk)


def fits_whole(inputs: SearchInputs, memory_budget: int) -> bool:
    """Whether `float64_search` may hold all similarities, and so compute each pair once."""
    count = len(inputs.gallery)
    return inputs.symmetric and count * (count * 4 + BLOCK * 24) <= memory_budget // 2


def _whole(inputs: SearchInputs) -> Tensor:
    """All similarities `(N, N)`, the half below the diagonal mirrored."""
    count = len(inputs.gallery)
    values = torch.empty((count, count), dtype=torch.float32, device=inputs.own.device)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows = torch.arange(start, stop, device=inputs.own.device)
        values[start:stop, start:] = exact_block(inputs.queries, rows, inputs.gallery, start, count)
        values[stop:, start:stop] = values[start:stop, stop:].T
    return values


def _write_nearest(
    values: Tensor, own: Tensor, k: int, memory_budget: int, keys: Tensor, rows: Tensor
) -> None:
    """Write `keys[rows]` by similarities `(n, G)` float32, which it overwrites."""
    hide_own(values, own, 0)
    size = max(1, memory_budget // 8 // (min(k + 1, values.shape[1]) * 64))
    for start in range(0, len(rows), size):
        piece = slice(start, start + size)
        keys[rows[piece]] = _nearest(values[piece], own[piece], k, memory_budget)


def _nearest(values: Tensor, own: Tensor, k: int, memory_budget: int) -> Tensor:
    """Keys `(n, k)` of the nearest by similarities `(n, G)`, own ones hidden."""
    best, positions = values.topk(min(k + 1, values.shape[1]), dim=1)
    keys = top(to_keys(best, torch.where(positions == own[:, None], LAST, positions)), k)
    if best.shape[1] <= k:
        return keys
    # Which of several equals `topk` keeps is not said; where the k-th has an equal, keys of all decide.
    tied = ((best[:, k - 1] == best[:, k]) & (best[:, k] > -torch.inf)).nonzero().squeeze(1)
    for chunk in tied.split(min(16, max(1, memory_budget // 8 // (values.shape[1] * 64)))):
        everything = torch.arange(values.shape[1], device=values.device).expand(len(chunk), -1)
        positions = torch.where(everything == own[chunk, None], LAST, everything)
        keys[chunk] = top(to_keys(values[chunk], positions), k)
    return keys
