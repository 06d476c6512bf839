"""From embeddings and labels to named numbers, by one exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unseen.retrieval import metrics as measure
from unseen.retrieval.clustering import cluster_agreement
from unseen.retrieval.engine.full_ranking import full_ranking
from unseen.retrieval.engine.inputs import SearchInputs, as_ids, check_inputs
from unseen.retrieval.engine.keys import LAST, from_keys
from unseen.retrieval.engine.nearest import AnyPrecision, nearest_in_parts
from unseen.retrieval.engine.vectors import Similarity, as_labels, as_vectors, full_precision
from unseen.retrieval.search import GIB, Neighbours, no_neighbours, write_neighbours


@dataclass(frozen=True)
class RetrievalResult:
    """What one search over `N` queries of `C` classes says.

    Args:
        metrics: mean of each metric over the queries that count.
        per_query: metric name → `(N,)` float64; NaN where a query has no relevant item (with `skip`).
        classes: `(C,)` int64, ascending: the labels that occur among queries.
        per_class: metric name → `(C,)` float64, mean over the queries of that class that count, NaN for none.
        neighbours: the `k` nearest of each query: as many as were asked for, or as a metric at K wants, or as
            the gallery holds.
        ids: `(N,)` int64, of the queries: as given, or the row.
        labels: `(N,)` int64, of the queries.
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
    neighbours: int = 10,
    memory_budget: int = GIB,
    precision: AnyPrecision = "auto",
) -> RetrievalResult:
    """Retrieval metrics of `N` queries against a gallery, or against each other.

    Args:
        embeddings: `(N, d)` NumPy or torch, any device. One without float64 (MPS) hands them to the CPU, and
            results lie there; else they lie where the embeddings do.
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
        neighbours: how many to keep of each query, for pictures; more where a metric at K needs them.
        memory_budget: bytes that are held beyond inputs (float32, in the order of their ids), results and a
            few numbers a row, however large the classes: where the R nearest of all queries do not fit, parts
            of the queries are searched one after another. A budget below the inputs' size may rule the fast
            pass out. The clusters of `nmi` and `ami` are scikit-learn's own.
        precision: of the fast pass on a CPU; decides speed, never results. See `search`.

    Raises:
        ValueError: malformed input, a rank below 1, NaN or infinite embeddings (with their ids), or no query
            that could be answered.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels belong together; got only one of them.")
    _check_ranks("recall_at", recall_at)
    _check_ranks("precision_at", precision_at)
    _check_ranks("knn_accuracy_at", knn_accuracy_at)
    if without_relevant not in ("skip", "zero"):
        raise ValueError(f"without_relevant={without_relevant!r}: wanted 'skip' or 'zero'.")
    numbers = as_ids(ids, "ids")
    raw = as_vectors(embeddings, "embeddings", numbers)
    labels = known = as_labels(labels, len(raw), "labels").to(raw.device)
    inputs = check_inputs(raw, gallery, similarity, numbers, gallery_ids)
    if gallery is not None:
        known = as_labels(gallery_labels, len(inputs.gallery), "gallery_labels").to(raw.device)
    given = inputs.query_rows
    own = torch.empty_like(inputs.own).index_copy_(0, given, inputs.own)
    if gallery is not None:
        _check_own(labels, known[inputs.order], own, inputs.ids)
    relevant = _count_relevant(labels, known, own)
    if not relevant.any():
        raise ValueError(
            f"None of the {len(raw)} queries has a gallery item of its label: nothing can be retrieved. "
            "Check that labels and gallery_labels number the classes alike and that classes have two images."
        )
    asked = _AtRank(tuple(recall_at), tuple(precision_at), tuple(knn_accuracy_at), map_at_r, r_precision)
    kept = min(max(1, neighbours, *recall_at, *precision_at, *knn_accuracy_at), inputs.available)
    nearest = no_neighbours(len(raw), kept, raw.device)
    hits = torch.zeros((len(raw), kept), dtype=torch.bool, device=raw.device)
    values: dict[str, Tensor] = {}
    depth = relevant.clamp(min=kept) if map_at_r or r_precision else torch.full_like(relevant, kept)
    for positions, keys in nearest_in_parts(inputs, depth[given], memory_budget, precision):
        rows = given[positions]
        write_neighbours(nearest, rows, inputs, keys[:, :kept])
        part_hits, found, theirs = _compare(inputs, keys, labels[rows], known)
        hits[rows] = part_hits[:, :kept]
        for name, value in asked.values(part_hits, found, labels[rows], theirs, relevant[rows]).items():
            values.setdefault(name, torch.empty(len(raw), dtype=value.dtype, device=raw.device))[rows] = value
    if mean_average_precision or mrr:
        with full_precision(raw.device):
            whole = full_ranking(inputs, labels[given], known[inputs.order], memory_budget)
        average, reciprocal = (torch.empty_like(value).index_copy_(0, given, value) for value in whole)
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
        neighbours=nearest,
        ids=torch.arange(len(raw), device=raw.device) if numbers is None else numbers.to(raw.device),
        labels=labels,
        hits=hits,
        relevant=relevant,
    )


class _AtRank(NamedTuple):
    """Which metrics of the nearest are asked for."""

    recall: tuple[int, ...]
    precision: tuple[int, ...]
    knn_accuracy: tuple[int, ...]
    map_at_r: bool
    r_precision: bool

    def values(
        self, hits: Tensor, found: Tensor, labels: Tensor, neighbour_labels: Tensor, relevant: Tensor
    ) -> dict[str, Tensor]:
        """Metric → `(n,)` of `n` queries; arguments as in `metrics`."""
        values = {f"recall_at_{k}": measure.recall_at(hits, k) for k in self.recall}
        values |= {f"precision_at_{k}": measure.precision_at(hits, k) for k in self.precision}
        values |= {
            f"knn_accuracy_{k}": measure.knn_accuracy(labels, neighbour_labels, k, found)
            for k in self.knn_accuracy
        }
        if self.map_at_r:
            values["map_at_r"] = measure.map_at_r(hits, relevant)
        if self.r_precision:
            values["r_precision"] = measure.r_precision(hits, relevant)
        return values


def _compare(
    inputs: SearchInputs, keys: Tensor, labels: Tensor, gallery_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of neighbours `(n, k)`: which are relevant, which there are, and their labels."""
    positions = from_keys(keys)[1]
    found = positions != LAST
    theirs = gallery_labels[inputs.order[torch.where(found, positions, 0)]]
    return (theirs == labels[:, None]) & found, found, theirs


def _check_ranks(name: str, ranks: Any) -> None:
    if not isinstance(ranks, Sequence) or not all(isinstance(k, int | np.integer) and k >= 1 for k in ranks):
        raise ValueError(f"{name}={ranks!r}: wanted a sequence of whole numbers from 1 upwards.")


def _check_own(labels: Tensor, gallery_labels: Tensor, own: Tensor, ids: Tensor) -> None:
    """Refuse an id that is of one image among queries and of another in the gallery.

    Args:
        labels: `(N,)`.
        gallery_labels: `(G,)`, in the order of `ids`.
        own: `(N,)` positions in that order, -1 for none.
        ids: `(G,)`.
    """
    differing = torch.nonzero((own >= 0) & (gallery_labels[own.clamp(min=0)] != labels))
    if len(differing):
        row = int(differing[0])
        raise ValueError(
            f"The id {int(ids[own[row]])} has label {int(labels[row])} as a query and "
            f"{int(gallery_labels[own[row]])} in the gallery. An id names one image, in both: give those of "
            "queries and gallery other numbers, or give none."
        )


def _count_relevant(labels: Tensor, gallery_labels: Tensor, own: Tensor) -> Tensor:
    """`(N,)` int64: gallery items of each query's label, itself excluded; `own` is -1 where it is absent."""
    known, sizes = gallery_labels.unique(return_counts=True)
    place = torch.searchsorted(known, labels.contiguous()).clamp(max=len(known) - 1)
    return torch.where(known[place] == labels, sizes[place], 0) - (own >= 0).long()


def _class_means(values: Tensor, member: Tensor, count: int) -> Tensor:
    counts = ~values.isnan()
    sums = torch.zeros(count, dtype=torch.float64, device=values.device)
    sums.index_add_(0, member, values.nan_to_num(0.0))
    sizes = torch.zeros_like(sums).index_add_(0, member, counts.double())
    return sums / sizes
