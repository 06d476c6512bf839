"""Exact nearest neighbours in bounded memory.

Small problems: all similarities in float64. Large ones: a fast pass in low precision finds, for every
query, candidates that provably contain its `k` nearest neighbours, and float64 decides among them. Results
equal a float64 brute force with similarities rounded to float32 and ties broken by the lower id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.retrieval.engine.inputs import SearchInputs, check_inputs
from unseen.retrieval.engine.keys import LAST, from_keys
from unseen.retrieval.engine.nearest import AnyPrecision, nearest_in_parts
from unseen.retrieval.engine.vectors import Similarity

GIB = 2**30


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


def search(
    embeddings: Any,
    gallery: Any = None,
    *,
    k: int,
    similarity: Similarity = "cosine",
    ids: Any = None,
    gallery_ids: Any = None,
    memory_budget: int = GIB,
    precision: AnyPrecision = "auto",
) -> Neighbours:
    """The `k` nearest gallery items of each query, exactly; a query is never its own neighbour.

    Args:
        embeddings: `(N, d)` NumPy or torch, any device. One without float64 (MPS) hands them to the CPU, and
            results lie there; else they lie where the embeddings do.
        gallery: `(G, d)`; None means that queries are the gallery, each excluded from its own neighbours.
        k: how many neighbours.
        similarity: `cosine` (0 for a zero vector), `dot`, or `euclidean` (minus the distance).
        ids: `(N,)` distinct integers; by default the row. They break ties and name rows in errors.
        gallery_ids: `(G,)`; with both given, a query and a gallery item of the same id are the same thing
            and excluded; without, nothing in a separate gallery is excluded.
        memory_budget: bytes that are held beyond inputs (float32, in the order of their ids), results and a
            few numbers a row. A budget below the inputs' size may rule the fast pass out.
        precision: of the fast pass on a CPU, which decides speed and never results: `float32`, `bfloat16`,
            `int8`, `float64` for none, or `auto`, what a short measurement of the machine and of the
            embeddings favours.

    Raises:
        ValueError: shapes, ids or values that cannot be searched; the message names them.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r}: wanted a whole number from 1 upwards.")
    inputs = check_inputs(embeddings, gallery, similarity, ids, gallery_ids)
    neighbours = no_neighbours(len(inputs.queries), k, inputs.own.device)
    given = inputs.query_rows
    depth = torch.full_like(inputs.own, k)
    for rows, keys in nearest_in_parts(inputs, depth, memory_budget, precision):
        write_neighbours(neighbours, given[rows], inputs, keys)
    return neighbours


def no_neighbours(count: int, k: int, device: torch.device) -> Neighbours:
    """`count` queries that have found nothing yet."""
    return Neighbours(
        positions=torch.full((count, k), -1, device=device),
        ids=torch.full((count, k), -1, device=device),
        similarities=torch.full((count, k), -torch.inf, dtype=torch.float32, device=device),
    )


def write_neighbours(neighbours: Neighbours, rows: Tensor, inputs: SearchInputs, keys: Tensor) -> None:
    """Write what `keys` `(n, k)` say into `rows` `(n,)` of neighbours `(N, k)`."""
    similarities, positions = from_keys(keys)
    found = positions != LAST
    positions = torch.where(found, positions, 0)
    missing = torch.tensor(-1, device=keys.device)
    neighbours.positions[rows] = torch.where(found, inputs.order[positions], missing)
    neighbours.ids[rows] = torch.where(found, inputs.ids[positions], missing)
    neighbours.similarities[rows] = similarities
