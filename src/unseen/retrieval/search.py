"""Exact nearest neighbours in bounded memory.

A fast pass in low precision finds, for every query, candidates that provably contain its `k` nearest
neighbours; float64 then decides among them. Results equal a float64 brute force with similarities rounded
to float32 and ties broken by the lower id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unseen.retrieval.order import LAST, from_keys, to_keys, top
from unseen.retrieval.similarity import Similarity, Vectors, as_vectors, exact, exact_block, norms_of, prepare

GIB = 2**30
SPARE = (
    8  # candidates kept beyond k by the float32 pass, so that near-ties at rank k rarely need a second look
)


@dataclass(frozen=True)
class Neighbours:
    """The `k` nearest gallery items of each of `N` queries, nearest first.

    Args:
        positions: `(N, k)` int64 rows of the gallery; -1 where the gallery has no more items.
        ids: `(N, k)` int64 ids of these rows; equal to `positions` unless ids were given; -1 likewise.
        similarities: `(N, k)` float32: cosine, dot product or minus the Euclidean distance; -inf likewise.
    """

    positions: Tensor
    ids: Tensor
    similarities: Tensor


@dataclass(frozen=True)
class Problem:
    """Queries, and a gallery ordered by id, so that a lower position is a lower id.

    Args:
        queries: `N` vectors; the same object as `gallery` when queries are the gallery.
        gallery: `G` vectors.
        own: `(N,)` int64 position of the query itself in the gallery, -1 if it is not there.
        ids: `(G,)` int64, ascending.
        order: `(G,)` int64 rows of the gallery as given, in the order of their ids.
    """

    queries: Vectors
    gallery: Vectors
    own: Tensor
    ids: Tensor
    order: Tensor

    @property
    def symmetric(self) -> bool:
        return self.queries is self.gallery


def search(
    embeddings: Any,
    gallery: Any = None,
    *,
    k: int,
    similarity: Similarity = "cosine",
    ids: Any = None,
    gallery_ids: Any = None,
    memory_budget: int = GIB,
) -> Neighbours:
    """The `k` nearest gallery items of each query, exactly; a query is never its own neighbour.

    Args:
        embeddings: `(N, d)` NumPy or torch, any device.
        gallery: `(G, d)`; None means that queries are the gallery, each excluded from its own neighbours.
        k: how many neighbours.
        similarity: `cosine` (0 for a zero vector), `dot`, or `euclidean` (minus the distance).
        ids: `(N,)` distinct integers; by default the row. They break ties and name rows in errors.
        gallery_ids: `(G,)`; with both given, a query and a gallery item of the same id are the same thing
            and excluded; without, nothing in a separate gallery is excluded.
        memory_budget: bytes for blocks and candidates, beyond inputs and results.

    Raises:
        ValueError: shapes, ids or values that cannot be searched; the message names them.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    problem = pose(embeddings, gallery, similarity, ids, gallery_ids)
    similarities, positions = from_keys(_nearest(problem, k, memory_budget))
    found = positions != LAST
    positions = torch.where(found, positions, 0)
    missing = torch.tensor(-1, device=positions.device)
    neighbours = Neighbours(
        positions=torch.where(found, problem.order[positions], missing),
        ids=torch.where(found, problem.ids[positions], missing),
        similarities=similarities,
    )
    if not problem.symmetric:
        return neighbours
    back = torch.argsort(problem.order)
    return Neighbours(neighbours.positions[back], neighbours.ids[back], neighbours.similarities[back])


def pose(embeddings: Any, gallery: Any, similarity: Similarity, ids: Any, gallery_ids: Any) -> Problem:
    """Check and prepare: everything that can be wrong is found here, before any long work."""
    queries_ids = _as_ids(ids, "ids")
    raw = as_vectors(embeddings, "embeddings", queries_ids)
    if gallery is None:
        if gallery_ids is not None:
            raise ValueError("gallery_ids were given without a gallery; pass ids instead.")
        sorted_ids, order = _ordered(queries_ids, len(raw), "ids", raw.device)
        queries = prepare(raw if queries_ids is None else raw[order], similarity)
        return Problem(queries, queries, torch.arange(len(raw), device=raw.device), sorted_ids, order)
    known_ids = _as_ids(gallery_ids, "gallery_ids")
    raw_gallery = as_vectors(gallery, "gallery", known_ids)
    if raw_gallery.shape[1] != raw.shape[1] or raw_gallery.device != raw.device:
        raise ValueError(
            f"embeddings and gallery must agree in width and device; got {raw.shape[1]} on {raw.device} "
            f"and {raw_gallery.shape[1]} on {raw_gallery.device}."
        )
    sorted_ids, order = _ordered(known_ids, len(raw_gallery), "gallery_ids", raw.device)
    raw_gallery = raw_gallery if known_ids is None else raw_gallery[order]
    largest = max(float(norms_of(raw).max()), float(norms_of(raw_gallery).max()))
    own = torch.full((len(raw),), -1, dtype=torch.int64, device=raw.device)
    if queries_ids is not None and known_ids is not None:
        wanted, _ = _ordered(queries_ids, len(raw), "ids", raw.device, keep_order=True)
        place = torch.searchsorted(sorted_ids, wanted).clamp(max=len(sorted_ids) - 1)
        own = torch.where(sorted_ids[place] == wanted, place, own)
    return Problem(
        prepare(raw, similarity, largest), prepare(raw_gallery, similarity, largest), own, sorted_ids, order
    )


def _as_ids(ids: Any, name: str) -> Tensor | None:
    if ids is None:
        return None
    tensor = torch.as_tensor(ids)
    if tensor.ndim != 1 or tensor.is_floating_point():
        raise ValueError(f"{name} must be one integer per vector; got {tensor.dtype} {tuple(tensor.shape)}.")
    return tensor.to(torch.int64)


def _ordered(
    ids: Tensor | None, count: int, name: str, device: torch.device, keep_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids in ascending order (or as given) and the rows that hold them."""
    rows = torch.arange(count, device=device)
    if ids is None:
        return rows, rows
    if len(ids) != count:
        raise ValueError(f"{name} must hold {count} integers, one per vector; got {len(ids)}.")
    ids = ids.to(device)
    sorted_ids, order = ids.sort()
    repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    if len(repeated):
        raise ValueError(
            f"{name} must be distinct; {repeated[0].item()} is given more than once. Drop the copies."
        )
    return (ids, rows) if keep_order else (sorted_ids, order)


def _nearest(problem: Problem, k: int, memory_budget: int) -> Tensor:
    """Keys of the `k` nearest of every query, `(N, k)`."""
    count = len(problem.gallery)
    kept = min(k + SPARE, count)
    keys = []
    for rows in _float32_rows(problem, kept, memory_budget):
        candidates, certain_below = _float32_candidates(problem, rows, kept, memory_budget)
        decided, nearest = decide(problem, rows, candidates, certain_below, k, memory_budget)
        if not decided.all():
            nearest[~decided] = brute_force(problem, rows[~decided], k, memory_budget)
        keys.append(nearest)
    return torch.cat(keys)


def _float32_rows(problem: Problem, kept: int, memory_budget: int) -> Iterator[Tensor]:
    size = _block(problem, memory_budget, kept)[0]
    yield from torch.arange(len(problem.queries), device=problem.own.device).split(size)


def _block(problem: Problem, memory_budget: int, kept: int) -> tuple[int, int]:
    """Rows and columns of a float32 block whose product, top-k and operands fit the budget."""
    width = problem.gallery.raw.shape[1]
    columns = max(min(len(problem.gallery), 16384), kept)
    per_row = columns * 4 + kept * 2 * 12 + width * 12
    rows = max(1, (memory_budget // 2 - columns * width * 12) // per_row)
    return min(rows, 4096), columns


def _float32_candidates(
    problem: Problem, rows: Tensor, kept: int, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """The `kept` best of each row by float32 score, and a bound that no other item's true score exceeds.

    Returns:
        positions `(n, kept)` and bounds `(n,)` float64.
    """
    queries, gallery = problem.queries, problem.gallery
    _, columns = _block(problem, memory_budget, kept)
    query = (queries.raw[rows].double() * queries.factor[rows, None]).float()
    scores = torch.full((len(rows), 0), 0.0, device=query.device)
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
    bound = scores[:, -1].double() + float32_error(queries, rows, gallery)
    if kept == len(gallery):
        bound = torch.full_like(bound, -torch.inf)
    return positions, bound


def hide_own(block: Tensor, own: Tensor, start: int) -> None:
    """Write -inf where a row of `block` (columns from `start`) meets itself."""
    here = ((own >= start) & (own < start + block.shape[1])).nonzero().squeeze(1)
    block[here, own[here] - start] = -torch.inf


def float32_error(queries: Vectors, rows: Tensor, gallery: Vectors) -> Tensor:
    """How far a float32 score may lie from the true one, `(n,)` float64.

    `|fl(q·g) - q·g| <= d u ‖q‖‖g‖` for any order of summation (Higham 2002, section 3.1), u = 2^-24;
    the scaled vectors are themselves rounded (u each), and similarities are rounded to float32 at the end.
    """
    width = gallery.raw.shape[1]
    query = (queries.raw[rows].double() * queries.factor[rows, None]).norm(dim=1)
    largest = float(gallery_norm(gallery))
    reach = query * largest
    if queries.similarity == "euclidean":
        reach = (query + largest).square()
    return reach * (width + 16) * 2.0**-23 + width * 2.0**-120


def gallery_norm(gallery: Vectors) -> Tensor:
    return (norms_of(gallery.raw) * gallery.factor).max()


def decide(
    problem: Problem, rows: Tensor, candidates: Tensor, bound: Tensor, k: int, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Settle the order of the candidates in float64.

    Args:
        candidates: `(n, c)` positions, `LAST` for none.
        bound: `(n,)` no item outside the candidates has a score above this.

    Returns:
        `(n,)` bool, true where the k nearest are certainly among the candidates, and keys `(n, k)`.
    """
    width = problem.gallery.raw.shape[1]
    size = max(1, memory_budget // 4 // (candidates.shape[1] * width * 12))
    decided, keys = [], []
    for chunk, items, limit in zip(rows.split(size), candidates.split(size), bound.split(size), strict=True):
        present = (items != LAST) & (items != problem.own[chunk, None])
        values = exact(problem.queries, chunk, problem.gallery, torch.where(present, items, 0))
        values = values.masked_fill(~present, -torch.inf).float()
        nearest = top(to_keys(values, items.masked_fill(~present, LAST)), k)
        furthest = from_keys(nearest[:, -1])[0].double()
        decided.append(to_score(problem.queries, chunk, furthest) >= limit)
        keys.append(nearest)
    return torch.cat(decided), torch.cat(keys)


def to_score(queries: Vectors, rows: Tensor, similarities: Tensor) -> Tensor:
    """From similarity to the score that the fast passes compute: `q·g`, less `‖g‖²/2` for Euclidean."""
    if queries.similarity == "cosine":
        return similarities
    factor = queries.factor[rows]
    if queries.similarity == "dot":
        return similarities * factor.square()
    squared = (queries.raw[rows].double() * factor[:, None]).square().sum(dim=1)
    return (squared - (similarities * factor).square()) / 2


def brute_force(problem: Problem, rows: Tensor, k: int, memory_budget: int) -> Tensor:
    """Keys of the `k` nearest of `rows`, all in float64: for rows with more near-ties than candidates."""
    width = problem.gallery.raw.shape[1]
    columns = min(len(problem.gallery), 8192)
    size = max(1, memory_budget // 2 // (columns * 40 + width * 12))
    result = []
    for chunk in rows.split(size):
        best = torch.zeros((len(chunk), 0), dtype=torch.int64, device=rows.device)
        for start in range(0, len(problem.gallery), columns):
            stop = min(start + columns, len(problem.gallery))
            values = exact_block(problem.queries, chunk, problem.gallery, start, stop).float()
            own = problem.own[chunk]
            hide_own(values, own, start)
            positions = torch.arange(start, stop, device=rows.device).expand_as(values)
            keys = to_keys(values, torch.where(positions == own[:, None], LAST, positions))
            best = top(torch.cat([best, keys], dim=1), min(k, best.shape[1] + keys.shape[1]))
        result.append(top(best, k))
    return torch.cat(result)
