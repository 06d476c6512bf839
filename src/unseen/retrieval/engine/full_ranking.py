"""Ranks of all relevant items, for the metrics that look at the whole ranking. Exact, and slow: all in
float64."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.retrieval.engine.exact import exact_keys
from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.keys import LAST, to_keys
from unseen.retrieval.engine.vectors import exact_block


def full_ranking(
    inputs: SearchInputs, labels: Tensor, gallery_labels: Tensor, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Average precision and reciprocal rank of the first relevant item, over the whole gallery.

    `AP = 1/R Σ_r r / rank_r` over the R relevant items (Manning et al., Introduction to Information
    Retrieval, 2008, section 8.4); the rank of the r-th is r plus the irrelevant items ahead of it.

    Args:
        labels: `(N,)` of the queries; `gallery_labels`: `(G,)` in the gallery's order of ids.

    Returns:
        `(N,)` float64 each; NaN where nothing is relevant.
    """
    order = gallery_labels.argsort(stable=True)
    sorted_labels = gallery_labels[order]
    first = torch.searchsorted(sorted_labels, labels)
    size = torch.searchsorted(sorted_labels, labels, right=True) - first
    columns = min(len(gallery_labels), 8192)
    rows = max(1, min(1024, memory_budget // 2 // (columns * 96 + int(size.max()) * 64)))
    precision, reciprocal = [], []
    for chunk in torch.arange(len(labels), device=labels.device).split(rows):
        widest = max(int(size[chunk].max()), 1)
        offset = torch.arange(widest, device=labels.device)
        inside = offset < size[chunk, None]
        place = (first[chunk, None] + offset).clamp(max=len(order) - 1)
        relevant = torch.where(inside, order[place], LAST)
        relevant = torch.where(relevant == inputs.own[chunk, None], LAST, relevant)
        keys = exact_keys(inputs, chunk, relevant, widest, memory_budget)
        ahead = _irrelevant_ahead(inputs, chunk, keys, labels, gallery_labels, columns)
        counts = (relevant != LAST).sum(dim=1)
        ranks = torch.arange(1, widest + 1, device=labels.device)
        terms = ranks / (ranks + ahead).double()
        precision.append((terms * (ranks <= counts[:, None])).sum(dim=1) / counts)
        reciprocal.append(torch.where(counts > 0, 1 / (1.0 + ahead[:, 0].double()), torch.nan))
    return torch.cat(precision), torch.cat(reciprocal)


def _irrelevant_ahead(
    inputs: SearchInputs, rows: Tensor, keys: Tensor, labels: Tensor, gallery_labels: Tensor, columns: int
) -> Tensor:
    """For each of the descending `keys` `(n, r)`: how many items of other labels have a greater key,
    `(n, r)`."""
    ascending = keys.flip(1).contiguous()
    above = torch.zeros((len(rows), keys.shape[1] + 1), dtype=torch.int64, device=rows.device)
    for start in range(0, len(gallery_labels), columns):
        stop = min(start + columns, len(gallery_labels))
        values = exact_block(inputs.queries, rows, inputs.gallery, start, stop).float()
        positions = torch.arange(start, stop, device=rows.device).expand_as(values)
        passed = torch.searchsorted(ascending, to_keys(values, positions))
        other = gallery_labels[start:stop] != labels[rows, None]
        other &= positions != inputs.own[rows, None]
        above.scatter_add_(1, passed, other.long())
    # above[:, p] items pass exactly the p lowest keys; the key of rank r is passed by p > widest - r.
    return above.flip(1).cumsum(dim=1)[:, :-1]
