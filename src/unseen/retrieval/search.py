"""Exact nearest neighbours in bounded memory.

Small problems: all similarities in float64. Large ones: a fast pass in low precision finds, for every
query, candidates that provably contain its `k` nearest neighbours, and float64 decides among them. Results
equal a float64 brute force with similarities rounded to float32 and ties broken by the lower id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.retrieval.engine.choose import choose_precision
from unseen.retrieval.engine.distributed import share, world_size
from unseen.retrieval.engine.exact import blocked_search, float64_search
from unseen.retrieval.engine.inputs import SearchInputs, check_inputs
from unseen.retrieval.engine.keys import LAST, from_keys
from unseen.retrieval.engine.rounding import Precision
from unseen.retrieval.engine.tiling import tile_sweep
from unseen.retrieval.engine.vectors import Similarity, full_precision

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
    precision: Precision | Literal["float64", "auto"] = "auto",
    distributed: bool = False,
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
        precision: of the fast pass on a CPU, which decides speed and never results: `float32`, `bfloat16`,
            `int8`, `float64` for none, or `auto`, what a short measurement of the machine and of the
            embeddings favours.
        distributed: share the queries among the ranks of torch.distributed; every rank passes the same
            vectors and gets all results.

    Raises:
        ValueError: shapes, ids or values that cannot be searched; the message names them.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    inputs = check_inputs(embeddings, gallery, similarity, ids, gallery_ids)

    def keys_of(part: SearchInputs) -> Tensor:
        return nearest_keys(part, k, memory_budget, precision)

    shared = distributed and world_size() > 1
    with full_precision(inputs.own.device):
        keys = share(inputs, keys_of) if shared else keys_of(inputs)
    similarities, positions = from_keys(keys)
    found = positions != LAST
    positions = torch.where(found, positions, 0)
    missing = torch.tensor(-1, device=positions.device)
    neighbours = Neighbours(
        positions=torch.where(found, inputs.order[positions], missing),
        ids=torch.where(found, inputs.ids[positions], missing),
        similarities=similarities,
    )
    if not inputs.symmetric or ids is None:
        return neighbours
    back = torch.argsort(inputs.order)
    return Neighbours(neighbours.positions[back], neighbours.ids[back], neighbours.similarities[back])


def nearest_keys(
    inputs: SearchInputs, k: int, memory_budget: int, precision: Precision | Literal["float64", "auto"]
) -> Tensor:
    """Keys `(N, k)`: a faster search where it pays, all pairs in float64 for what it leaves open."""
    device = inputs.own.device
    keys = torch.empty((len(inputs.queries), k), dtype=torch.int64, device=device)
    open_rows = torch.arange(len(inputs.queries), device=device)
    if len(open_rows) == 0:
        return keys
    # An accelerator's own top-k is fast, and a sweep that holds most of the gallery saves nothing.
    swept: Precision | Literal["float64"] = "float64"
    if device.type == "cpu" and 8 * k <= len(inputs.gallery):
        swept = choose_precision(inputs, k, memory_budget) if precision == "auto" else precision
    if swept != "float64":
        # Here, because small problems need not wait for a compiler.
        from unseen.retrieval.engine.sweep import Sweep

        keys, decided = Sweep(inputs, k, tile_sweep(inputs, k, memory_budget, swept)).run()
        open_rows = (~decided).nonzero().squeeze(1)
    # Euclidean distances need differences, not products: only of what products leave.
    if len(open_rows) and (device.type != "cpu" or inputs.queries.similarity == "euclidean"):
        keys[open_rows], decided = blocked_search(inputs, open_rows, k, memory_budget)
        open_rows = open_rows[~decided]
    if len(open_rows):
        keys[open_rows] = float64_search(inputs, open_rows, k, memory_budget)
    return keys
