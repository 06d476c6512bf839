"""Metrics as pure functions of what each query's neighbours are: `(N, k)` in, `(N,)` float64 out.

`hits[i, j]` says whether the (j+1)-th neighbour of query i is relevant (same label), `relevant[i]` how many
relevant items the gallery holds for it, itself excluded. Queries without any are the caller's to leave out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recall_at(hits: Tensor, k: int) -> Tensor:
    """1 if any of the first `k` neighbours is relevant, the Recall@K of this field (elsewhere: hit rate).

    Jégou et al., Product quantization for nearest neighbor search, 2011; Oh Song et al. 2016.
    """
    return hits[:, :k].any(dim=1).double()


def precision_at(hits: Tensor, k: int) -> Tensor:
    """The relevant fraction of the first `k` neighbours."""
    return hits[:, :k].sum(dim=1).double() / k


def r_precision(hits: Tensor, relevant: Tensor) -> Tensor:
    """The relevant fraction of the first R neighbours, R = `relevant`; `hits` holds at least R columns."""
    return (hits & _within(hits, relevant)).sum(dim=1).double() / relevant


def map_at_r(hits: Tensor, relevant: Tensor) -> Tensor:
    """Mean average precision at R: `1/R Σ_{i=1..R} P(i)`; P(i): precision at i if i is relevant, else 0.

    Musgrave et al., A Metric Learning Reality Check, 2020, section 2.4.
    """
    counted = hits & _within(hits, relevant)
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = counted.cumsum(dim=1).double() / ranks
    return (precision * counted).sum(dim=1) / relevant


def knn_accuracy(labels: Tensor, neighbour_labels: Tensor, k: int, found: Tensor) -> Tensor:
    """1 if the majority label of the first `k` neighbours is the query's; of tied labels the nearest wins.

    Args:
        labels: `(N,)` of the queries.
        neighbour_labels: `(N, >= k)`, nearest first.
        found: `(N, >= k)` bool, false where the gallery was exhausted.
    """
    votes, present = neighbour_labels[:, :k], found[:, :k]
    count = torch.zeros_like(votes)
    for column in range(votes.shape[1]):  # k is small; (N, k, k) would not be
        count += ((votes == votes[:, column, None]) & present[:, column, None]).to(count.dtype)
    count = torch.where(present, count, 0)
    # The first of the greatest counts: argmax alone does not promise which.
    place = torch.arange(votes.shape[1], 0, -1, device=votes.device)
    winner = (count * (votes.shape[1] + 1) + place).argmax(dim=1, keepdim=True)
    right = (votes.gather(1, winner).squeeze(1) == labels) & present[:, 0]
    return right.double()


def _within(hits: Tensor, relevant: Tensor) -> Tensor:
    return torch.arange(hits.shape[1], device=hits.device) < relevant[:, None]
