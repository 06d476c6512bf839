"""Queries and gallery, checked and put in the order of their ids: everything wrong is found before long
work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseen.retrieval.engine.vectors import Similarity, Vectors, as_tensor, as_vectors, norms_of, prepare


@dataclass(frozen=True)
class SearchInputs:
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

    @property
    def query_rows(self) -> Tensor:
        """`(N,)` rows of the queries as given."""
        return self.order if self.symmetric else torch.arange(len(self.queries), device=self.own.device)

    @property
    def available(self) -> int:
        """How many neighbours a query can have at most."""
        return max(1, len(self.gallery) - self.symmetric)

    def only(self, positions: Tensor) -> SearchInputs:
        """Some of the queries, against the whole gallery."""
        return replace(self, queries=self.queries.only(positions), own=self.own[positions])


def check_inputs(
    embeddings: Any, gallery: Any, similarity: Similarity, ids: Any, gallery_ids: Any
) -> SearchInputs:
    """Check and prepare: everything that can be wrong is found here, before any long work."""
    queries_ids = as_ids(ids, "ids")
    raw = as_vectors(embeddings, "embeddings", queries_ids)
    if gallery is None:
        if gallery_ids is not None:
            raise ValueError("gallery_ids were given without a gallery; pass ids instead.")
        sorted_ids, order = _ordered(queries_ids, len(raw), "ids", raw.device)
        queries = prepare(_arranged(raw, order), similarity)
        return SearchInputs(queries, queries, torch.arange(len(raw), device=raw.device), sorted_ids, order)
    known_ids = as_ids(gallery_ids, "gallery_ids")
    raw_gallery = as_vectors(gallery, "gallery", known_ids)
    if raw_gallery.shape[1] != raw.shape[1] or raw_gallery.device != raw.device:
        raise ValueError(
            f"embeddings and gallery must agree in width and device; got {raw.shape[1]} on {raw.device} "
            f"and {raw_gallery.shape[1]} on {raw_gallery.device}."
        )
    sorted_ids, order = _ordered(known_ids, len(raw_gallery), "gallery_ids", raw.device)
    raw_gallery = _arranged(raw_gallery, order)
    largest = max(float(norms_of(raw).max()), float(norms_of(raw_gallery).max()))
    own = torch.full((len(raw),), -1, dtype=torch.int64, device=raw.device)
    wanted, _ = _ordered(queries_ids, len(raw), "ids", raw.device, keep_order=True)
    if queries_ids is not None and known_ids is not None:
        place = torch.searchsorted(sorted_ids, wanted).clamp(max=len(sorted_ids) - 1)
        own = torch.where(sorted_ids[place] == wanted, place, own)
    return SearchInputs(
        prepare(raw, similarity, largest), prepare(raw_gallery, similarity, largest), own, sorted_ids, order
    )


def _arranged(raw: Tensor, order: Tensor) -> Tensor:
    """Rows in `order`; not copied where that is theirs already."""
    return raw if bool((order[1:] > order[:-1]).all()) else raw[order]


def as_ids(ids: Any, name: str) -> Tensor | None:
    """`(N,)` int64, of NumPy, torch or a list.

    Raises:
        ValueError: they are no integers, or not in a row.
    """
    if ids is None:
        return None
    given = np.asarray(ids) if isinstance(ids, list | tuple) else ids
    if isinstance(given, np.ndarray) and given.dtype.kind not in "iu":
        raise ValueError(f"{name} must be one integer per vector; got {given.dtype} {given.shape}.")
    tensor = as_tensor(given)
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
