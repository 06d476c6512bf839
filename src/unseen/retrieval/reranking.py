"""Second looks at a ranking: query expansion and k-reciprocal encoding, as functions over neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.retrieval.search import Neighbours


def expand_queries(
    embeddings: Tensor, gallery: Tensor, neighbours: Neighbours, count: int = 10, power: float = 3.0
) -> Tensor:
    """α-query expansion: each query plus its first neighbours weighted by similarity, normalised.

    `q' ∝ q + Σ_{j <= count} max(s_j, 0)^α g_j` (Radenović et al., Fine-tuning CNN Image Retrieval with
    No Human Annotation, 2019, section 3.4); α = 0 is the average query expansion of Chum et al. 2007.

    Args:
        embeddings: `(N, d)` of the queries.
        gallery: `(G, d)` that `neighbours.positions` point into; the same tensor if queries are the gallery.
        neighbours: of the queries, by cosine.
        count: how many neighbours to add.
        power: α.

    Returns:
        `(N, d)` new queries, to be searched again.
    """
    positions, similarities = neighbours.positions[:, :count], neighbours.similarities[:, :count]
    weights = similarities.clamp(min=0).pow(power) * (positions >= 0)
    unit = torch.nn.functional.normalize(gallery.float())
    expanded = torch.nn.functional.normalize(embeddings.float())
    for column in range(positions.shape[1]):  # one gather of (N, d) at a time
        expanded = expanded + weights[:, column, None] * unit[positions[:, column].clamp(min=0)]
    return torch.nn.functional.normalize(expanded)


def k_reciprocal(
    embeddings: Tensor,
    neighbours: Neighbours,
    reach: int = 20,
    expansion: int = 6,
    original: float = 0.3,
    block: int = 256,
) -> Neighbours:
    """Reorder neighbours by the Jaccard distance of k-reciprocal sets, mixed with the original distance.

    Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, 2017, with cosine distance.
    Queries and gallery must be one set: stack them, and drop unwanted rows afterwards.

    Args:
        embeddings: `(N, d)`.
        neighbours: of `embeddings` among themselves, at least `reach` of them. Only these are reordered.
        reach: k1, the size of the neighbourhoods whose reciprocal members count.
        expansion: k2, how many neighbourhoods (the item's own included) are averaged.
        original: λ, the weight of the original distance.
        block: rows at a time; memory is `O(block · N)` beyond `O(N · reach²)` worst case for the sets.

    Returns:
        The same neighbours in their new order; `similarities` are minus the mixed distance.
    """
    if neighbours.positions.shape[1] < reach:
        raise ValueError(
            f"k_reciprocal needs {reach} neighbours of each item; got {neighbours.positions.shape[1]}. "
            "Search more, or lower reach."
        )
    unit = torch.nn.functional.normalize(embeddings.float())
    itself = torch.arange(len(unit), device=unit.device)
    near = torch.cat([itself[:, None], neighbours.positions], dim=1)
    weights = _encode(unit, near, reach, block)
    weights = _average(weights, near[:, :expansion], block)
    distances = torch.empty_like(neighbours.similarities)
    for rows in itself.split(block):
        others = neighbours.positions[rows]
        jaccard = _jaccard(weights, rows, others.clamp(min=0))
        mixed = (1 - original) * jaccard + original * (1 - neighbours.similarities[rows])
        distances[rows] = mixed.masked_fill(others < 0, torch.inf)
    order = distances.argsort(dim=1, stable=True)
    return Neighbours(
        neighbours.positions.gather(1, order), neighbours.ids.gather(1, order), -distances.gather(1, order)
    )


Sparse = tuple[Tensor, Tensor]
"""Columns `(N, c)` and values `(N, c)` of a matrix with at most c entries a row; free places have value 0."""


def _reciprocal(near: Tensor, rows: Tensor, reach: int) -> Tensor:
    """`(..., reach + 1)` bool: which neighbours of `rows` (any shape) have them as a neighbour, too."""
    members = near[rows][..., : reach + 1]
    theirs = near[members.clamp(min=0)][..., : reach + 1]
    return (theirs == rows[..., None, None]).any(dim=-1) & (members >= 0)


def _encode(unit: Tensor, near: Tensor, reach: int, block: int) -> Sparse:
    """Rows of `exp(-distance)` over each item's expanded k-reciprocal set, each summing to 1."""
    half = round(reach / 2)
    columns: list[Tensor] = []
    values: list[Tensor] = []
    for rows in torch.arange(len(unit), device=unit.device).split(block):
        members = near[rows, : reach + 1].clamp(min=0)
        mutual = _reciprocal(near, rows, reach)
        inside = torch.zeros((len(rows), len(unit)), device=unit.device)
        inside.scatter_reduce_(1, members, mutual.float(), "amax")
        whole = inside.clone()
        for place in range(reach + 1):
            member = members[:, place]
            theirs = near[member, : half + 1].clamp(min=0)
            mutual_theirs = _reciprocal(near, member, half)
            common = (inside.gather(1, theirs) * mutual_theirs).sum(dim=1)
            taken = mutual[:, place] & (common > 2 / 3 * mutual_theirs.sum(dim=1))
            whole.scatter_reduce_(1, theirs, (mutual_theirs & taken[:, None]).float(), "amax")
        close = torch.exp(-(1 - unit[rows] @ unit.T)) * whole
        _append(close / close.sum(dim=1, keepdim=True), columns, values)
    return _stack(columns, values)


def _average(weights: Sparse, near: Tensor, block: int) -> Sparse:
    """Each row becomes the mean of the rows that `near` `(N, k2)` names."""
    columns: list[Tensor] = []
    values: list[Tensor] = []
    for rows in torch.arange(len(near), device=near.device).split(block):
        dense = torch.zeros((len(rows), len(near)), device=near.device)
        for place in near[rows].clamp(min=0).T:
            dense.scatter_add_(1, weights[0][place], weights[1][place])
        _append(dense / near.shape[1], columns, values)
    return _stack(columns, values)


def _jaccard(weights: Sparse, rows: Tensor, others: Tensor) -> Tensor:
    """`1 - Σ min / Σ max` of rows of weights that sum to 1: `(n, k)`."""
    size = int(weights[0].max()) + 1
    dense = torch.zeros((len(rows), size), device=rows.device)
    dense.scatter_add_(1, weights[0][rows], weights[1][rows])
    columns, values = weights[0][others], weights[1][others]
    mine = dense.gather(1, columns.flatten(1)).view_as(values)
    least = torch.minimum(mine, values).sum(dim=2)
    return 1 - least / (2 - least)


def _append(dense: Tensor, columns: list[Tensor], values: list[Tensor]) -> None:
    widest = int((dense > 0).sum(dim=1).max())
    top = dense.topk(widest, dim=1)
    columns.append(top.indices)
    values.append(top.values)


def _stack(columns: list[Tensor], values: list[Tensor]) -> Sparse:
    widest = max(part.shape[1] for part in columns)
    pad = [(0, widest - part.shape[1]) for part in columns]
    return (
        torch.cat([torch.nn.functional.pad(part, by) for part, by in zip(columns, pad, strict=True)]),
        torch.cat([torch.nn.functional.pad(part, by) for part, by in zip(values, pad, strict=True)]),
    )
