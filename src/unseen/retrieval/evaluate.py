"""From embeddings and labels to named numbers, by one exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unseen.retrieval import metrics as measure
from unseen.retrieval.clustering import cluster_agreement
from unseen.retrieval.engine.distributed import first_of_each, gather
from unseen.retrieval.engine.full_ranking import full_ranking
from unseen.retrieval.engine.inputs import check_inputs
from unseen.retrieval.engine.rounding import Precision
from unseen.retrieval.engine.vectors import Similarity, as_labels, as_vectors, full_precision
from unseen.retrieval.search import GIB, Neighbours, search


@dataclass(frozen=True)
class RetrievalResult:
    """What one search over `N` queries of `C` classes says.

    Args:
        metrics: mean of each metric over the queries that count.
        per_query: metric name → `(N,)` float64; NaN where a query has no relevant item (with `skip`).
        classes: `(C,)` int64, ascending: the labels that occur among queries.
        per_class: metric name → `(C,)` float64, mean over the queries of that class that count, NaN for none.
        neighbours: the `k` nearest of each query, as many as the metrics needed.
        ids: `(N,)` int64, of the queries: as given, gathered and sorted if distributed, or the row.
        labels: `(N,)` int64, of the queries, likewise.
        hits: `(N, k)` bool, which neighbours share the query's label.
        relevant: `(N,)` int64, how many relevant items the gallery holds for each query, itself excluded.
    """

    metrics: dict[str, float]
    per_query: dict[str, Tensor]
    classes: Tensor
    per_class: dict[str, Tensor]
    neighbours: Neighbours
    ids: Tensor
    labels: Tensor
    hits: Tensor
    relevant: Tensor


def evaluate(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    ids: Any = None,
    gallery_ids: Any = None,
    similarity: Similarity = "cosine",
    recall_at: Sequence[int] = (1, 2, 4, 8),
    precision_at: Sequence[int] = (),
    knn_accuracy_at: Sequence[int] = (3,),
    map_at_r: bool = True,
    r_precision: bool = True,
    mean_average_precision: bool = False,
    mrr: bool = False,
    nmi: bool = False,
    ami: bool = False,
    without_relevant: Literal["skip", "zero"] = "skip",
    memory_budget: int = GIB,
    precision: Precision | Literal["float64", "auto"] = "auto",
    distributed: bool = False,
) -> RetrievalResult:
    """Retrieval metrics of `N` queries against a gallery, or against each other.

    Args:
        embeddings: `(N, d)` NumPy or torch, any device.
        labels: `(N,)` integers.
        gallery: `(G, d)`; None means that queries are the gallery, each excluded from its own neighbours.
        gallery_labels: `(G,)` integers.
        ids: `(N,)` distinct integers, by default the row: they break ties and name rows.
        gallery_ids: `(G,)`; with both given, a query is not its own neighbour where the gallery holds its id.
        similarity: `cosine`, `euclidean` or `dot`.
        recall_at: each K gives `recall_at_K`.
        precision_at: each K gives `precision_at_K`.
        knn_accuracy_at: each K gives `knn_accuracy_K`.
        map_at_r: give `map_at_r`.
        r_precision: give `r_precision`.
        mean_average_precision: give `mean_average_precision`, over the whole ranking (slow).
        mrr: give `mrr`, the mean reciprocal rank of the first relevant item, over the whole ranking (slow).
        nmi: give `nmi`, from k-means on the queries (slow, needs scikit-learn).
        ami: give `ami`, likewise.
        without_relevant: a query whose label no other gallery item has cannot be answered: `skip` leaves it
            out of every mean (as Musgrave et al. 2020), `zero` counts it as a miss.
        memory_budget: bytes for blocks and candidates, beyond inputs and results.
        precision: of the fast pass on a CPU; decides speed, never results. See `search`.
        distributed: each rank of torch.distributed passes its own part of queries (and gallery) and gets the
            result of all, the same for any number of ranks. Rows that a sampler repeated count once if `ids`
            (and `gallery_ids`) are given; without, ids number the parts one after another.

    Raises:
        ValueError: malformed input, NaN or infinite embeddings (with their ids), no query to answer.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels belong together; got only one of them.")
    raw, labels, ids = _collect(embeddings, labels, ids, "", distributed)
    known = labels
    if gallery is not None:
        gallery, known, gallery_ids = _collect(gallery, gallery_labels, gallery_ids, "gallery_", distributed)
    own = _own_in_gallery(len(raw), gallery, ids, gallery_ids)
    relevant = _count_relevant(labels, known, own.to(raw.device))
    if not relevant.any():
        raise ValueError(
            f"None of the {len(raw)} queries has a gallery item of its label: nothing can be retrieved. "
            "Check that labels and gallery_labels number the classes alike and that classes have two images."
        )
    whole_classes = int(relevant.max()) if map_at_r or r_precision else 1
    neighbours = search(
        raw,
        gallery,
        k=max(whole_classes, *recall_at, *precision_at, *knn_accuracy_at),
        similarity=similarity,
        ids=ids,
        gallery_ids=gallery_ids,
        memory_budget=memory_budget,
        precision=precision,
        distributed=distributed,
    )
    found = neighbours.positions >= 0
    neighbour_labels = known[neighbours.positions.clamp(min=0)]
    hits = (neighbour_labels == labels[:, None]) & found

    values: dict[str, Tensor] = {}
    values |= {f"recall_at_{k}": measure.recall_at(hits, k) for k in recall_at}
    values |= {f"precision_at_{k}": measure.precision_at(hits, k) for k in precision_at}
    values |= {
        f"knn_accuracy_{k}": measure.knn_accuracy(labels, neighbour_labels, k, found) for k in knn_accuracy_at
    }
    if map_at_r:
        values["map_at_r"] = measure.map_at_r(hits, relevant)
    if r_precision:
        values["r_precision"] = measure.r_precision(hits, relevant)
    if mean_average_precision or mrr:
        inputs = check_inputs(raw, gallery, similarity, ids, gallery_ids)
        rows = inputs.order if inputs.symmetric else torch.arange(len(raw), device=raw.device)
        with full_precision(raw.device):
            whole = full_ranking(inputs, labels[rows], known[inputs.order], memory_budget)
        average, reciprocal = (torch.empty_like(value).index_copy_(0, rows, value) for value in whole)
        values |= {"mean_average_precision": average} if mean_average_precision else {}
        values |= {"mrr": reciprocal} if mrr else {}
    clusters = cluster_agreement(raw, labels, similarity) if nmi or ami else {}

    lone = torch.nan if without_relevant == "skip" else 0.0
    per_query = {name: value.masked_fill(relevant == 0, lone) for name, value in values.items()}
    classes, member = labels.unique(return_inverse=True)
    return RetrievalResult(
        metrics={name: value.nanmean().item() for name, value in per_query.items()}
        | {name: clusters[name] for name, asked in (("nmi", nmi), ("ami", ami)) if asked},
        per_query=per_query,
        classes=classes,
        per_class={name: _class_means(value, member, len(classes)) for name, value in per_query.items()},
        neighbours=neighbours,
        ids=torch.arange(len(raw), device=raw.device) if ids is None else ids.to(torch.int64),
        labels=labels,
        hits=hits,
        relevant=relevant,
    )


def _collect(
    vectors: Any, labels: Any, ids: Any, prefix: str, distributed: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked vectors, labels and ids on one device; of all ranks, each id once, if distributed."""
    numbers = None if ids is None else torch.as_tensor(ids)
    raw = as_vectors(vectors, "gallery" if prefix else "embeddings", numbers)
    labels = as_labels(labels, len(raw), f"{prefix}labels").to(raw.device)
    numbers = None if numbers is None else numbers.to(raw.device)
    if not distributed:
        return raw, labels, numbers
    raw, labels = gather(raw), gather(labels)
    if numbers is None:
        return raw, labels, None
    numbers = gather(numbers)
    rows = first_of_each(numbers)
    return raw[rows], labels[rows], numbers[rows]


def _own_in_gallery(count: int, gallery: Any, ids: Any, gallery_ids: Any) -> Tensor:
    """`(N,)` bool: is the query itself in the gallery?"""
    if gallery is None:
        return torch.ones(count, dtype=torch.bool)
    if ids is None or gallery_ids is None:
        return torch.zeros(count, dtype=torch.bool)
    return torch.isin(torch.as_tensor(ids).cpu(), torch.as_tensor(gallery_ids).cpu())


def _count_relevant(labels: Tensor, gallery_labels: Tensor, own_in_gallery: Tensor) -> Tensor:
    """`(N,)` int64: gallery items of each query's label, itself excluded."""
    known, sizes = gallery_labels.unique(return_counts=True)
    place = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    return torch.where(known[place] == labels, sizes[place], 0) - own_in_gallery.long()


def _class_means(values: Tensor, member: Tensor, count: int) -> Tensor:
    counts = ~values.isnan()
    sums = torch.zeros(count, dtype=torch.float64, device=values.device)
    sums.index_add_(0, member, values.nan_to_num(0.0))
    sizes = torch.zeros_like(sums).index_add_(0, member, counts.double())
    return sums / sizes
