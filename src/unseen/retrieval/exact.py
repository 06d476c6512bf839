"""What decides: float64 similarities of candidates, and two slower searches for what a fast pass leaves
open."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor

from unseen.retrieval.order import LAST, from_keys, to_keys, top
from unseen.retrieval.problem import Problem
from unseen.retrieval.similarity import Vectors, exact, exact_block, norms_of

SPARE = 8  # candidates that the float32 search keeps beyond k: near-ties at rank k rarely exceed them
# Bytes of gathered vectors at a time: what a core keeps in its own cache is handled several times faster.
CACHED = 2 * 2**20


def exact_keys(problem: Problem, rows: Tensor, candidates: Tensor, k: int, packed: bool = False) -> Tensor:
    """The `k` nearest among candidates, decided in float64.

    Args:
        rows: `(n,)` positions of queries.
        candidates: `(n, c)` positions in the gallery, none of them the query itself; `LAST` for none.
        packed: no candidate stands to the right of a `LAST`.

    Returns:
        Keys `(n, k)`, nearest first.
    """
    size = max(1, CACHED // (max(candidates.shape[1], 1) * problem.gallery.raw.shape[1] * 12))
    present = candidates != LAST
    values = torch.full(candidates.shape, -torch.inf, device=candidates.device)

    def compare(start: int) -> None:
        chunk = slice(start, start + size)
        # Candidates stand to the left: columns after the last one in use need no work.
        used = int(present[chunk].sum(dim=1).max()) if packed else candidates.shape[1]
        positions = torch.where(present[chunk, :used], candidates[chunk, :used], 0)
        values[chunk, :used] = exact(problem.queries, rows[chunk], problem.gallery, positions).float()

    starts, threads = range(0, len(rows), size), torch.get_num_threads()
    if rows.device.type == "cpu" and threads > 1 and len(starts) > 1:
        list(_pool(threads).map(compare, starts))
    else:
        for start in starts:
            compare(start)
    return top(to_keys(values.masked_fill(~present, -torch.inf), candidates), k)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Workers that each take whole chunks alone.

    Threads that meet after each small operation cost more than the operation, above all on a busy machine.
    """
    pool, together = ThreadPoolExecutor(threads), Barrier(threads)

    def alone(_: int) -> None:
        together.wait()
        torch.set_num_threads(1)

    list(pool.map(alone, range(threads)))
    torch.set_num_threads(
        threads
    )  # what the workers set holds for them, and for libraries without such a notion
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


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


def float32_search(problem: Problem, rows: Tensor, k: int, memory_budget: int) -> tuple[Tensor, Tensor]:
    """Blocks in float32 that keep a few more than `k`, on any device, without waiting for it per block.

    Returns:
        Keys `(n, k)`, and `(n,)` bool: true where nothing that was not kept can be among the k nearest.
    """
    kept = min(k + SPARE, len(problem.gallery))
    columns = max(min(len(problem.gallery), 16384), kept)
    width = problem.gallery.raw.shape[1]
    free = memory_budget // 2 - columns * width * 12
    size = min(max(1, free // (columns * 8 + kept * 48 + width * 12)), 4096)
    keys, decided = [], []
    for chunk in rows.split(size):
        candidates, bound = _float32_candidates(problem, chunk, kept, columns)
        keys.append(exact_keys(problem, chunk, candidates, k))
        furthest = from_keys(keys[-1][:, -1])[0].double()
        decided.append(score_of(problem.queries, chunk, furthest) >= bound)
    return torch.cat(keys), torch.cat(decided)


def _float32_candidates(problem: Problem, rows: Tensor, kept: int, columns: int) -> tuple[Tensor, Tensor]:
    """Positions `(n, kept)` of the best float32 scores, and `(n,)` float64: no other item's score is
    above."""
    queries, gallery = problem.queries, problem.gallery
    query = (queries.raw[rows].double() * queries.factor[rows, None]).float()
    scores = torch.zeros((len(rows), 0), device=query.device)
    positions = torch.zeros((len(rows), 0), dtype=torch.int64, device=query.device)
    for start in range(0, len(gallery), columns):
        items = gallery.scaled(start, min(start + columns, len(gallery))).float()
        block = query @ items.T
        if queries.similarity == "euclidean":
            block -= items.square().sum(dim=1) / 2
        hide_own(block, problem.own[rows], start)
        best, place = block.topk(min(kept, block.shape[1]), dim=1)
        scores, positions = torch.cat([scores, best], dim=1), torch.cat([positions, place + start], dim=1)
        scores, which = scores.topk(min(kept, scores.shape[1]), dim=1)
        positions = positions.gather(1, which)
    positions = torch.where(positions == problem.own[rows, None], LAST, positions)
    bound = scores[:, -1].double() + float32_error(queries, rows, gallery)
    return positions, bound if kept < len(gallery) else torch.full_like(bound, -torch.inf)


def hide_own(block: Tensor, own: Tensor, start: int) -> None:
    """Write -inf where a row of `block` (columns from `start`) meets itself; waits for no device."""
    place = own[:, None] - start
    inside = (place >= 0) & (place < block.shape[1])
    place = place.clamp(0, block.shape[1] - 1)
    block.scatter_(1, place, torch.where(inside, -torch.inf, block.gather(1, place)))


def float32_error(queries: Vectors, rows: Tensor, gallery: Vectors) -> Tensor:
    """How far a float32 score may lie from the true one, `(n,)` float64.

    `|fl(q·g) - q·g| <= d u ‖q‖‖g‖` for any order of summation (Higham 2002, section 3.1), u = 2^-24;
    the scaled vectors are themselves rounded (u each), and similarities are rounded to float32 at the end.
    """
    width = gallery.raw.shape[1]
    query = (queries.raw[rows].double() * queries.factor[rows, None]).norm(dim=1)
    largest = (norms_of(gallery.raw) * gallery.factor).max()
    reach = (query + largest).square() if queries.similarity == "euclidean" else query * largest
    return reach * (width + 16) * 2.0**-23 + width * 2.0**-120


def brute_force(problem: Problem, rows: Tensor, k: int, memory_budget: int) -> Tensor:
    """Keys `(n, k)` of the nearest of `rows`, all in float64: for rows with too many near-ties to list."""
    width = problem.gallery.raw.shape[1]
    columns = min(len(problem.gallery), 8192)
    size = min(max(1, memory_budget // 2 // (columns * 64 + width * 12)), 1024)
    result = []
    for chunk in rows.split(size):
        own = problem.own[chunk, None]
        best = torch.zeros((len(chunk), 0), dtype=torch.int64, device=rows.device)
        for start in range(0, len(problem.gallery), columns):
            stop = min(start + columns, len(problem.gallery))
            values = exact_block(problem.queries, chunk, problem.gallery, start, stop).float()
            positions = torch.arange(start, stop, device=rows.device).expand_as(values)
            hide_own(values, own.squeeze(1), start)
            keys = to_keys(values, torch.where(positions == own, LAST, positions))
            best = top(torch.cat([best, keys], dim=1), min(k, best.shape[1] + keys.shape[1]))
        result.append(top(best, k))
    return torch.cat(result)
