"""A gallery with an index: tuned to a recall that is measured, searched while images come and go."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.deploy.gallery import Found, Gallery, Where, nothing
from unseen.deploy.index.contract import Index, Kind
from unseen.deploy.parts import made
from unseen.files import refusing_lock

FOLDER, DESCRIPTION = "index", "index.json"
SAMPLE = 500
"""Images of the gallery that are searched with to measure recall."""
MOST = 4096
"""Effort beyond which an index is not asked to try harder."""


@dataclass(frozen=True)
class Measured:
    """What an index is worth.

    Args:
        effort: that search uses.
        recall: share of the `k` nearest that it finds.
        k: of this recall.
        sample: how many images were searched with.
        milliseconds: for one query, of many at once, on this machine; deciding among candidates included.
        exact_milliseconds: of exact search, likewise.
        bytes: of the index on disk.
    """

    effort: int
    recall: float
    k: int
    sample: int
    milliseconds: float
    exact_milliseconds: float
    bytes: int


class IndexedGallery:
    """Searches a gallery by its index, and what was added since exactly; what was removed is left out.

    Args:
        gallery: of any state later than the index.
        index: of an earlier or the same state.
        known: the first id that the index does not know.
        effort: of its search, by which it finds enough of the `tuned_for` nearest.
        tuned_for: it is asked for as many at least; for more it tries as many times harder.
    """

    def __init__(self, gallery: Gallery, index: Index, known: int, effort: int, tuned_for: int) -> None:
        self.gallery, self.index, self.known = gallery, index, known
        self.effort, self.tuned_for = effort, tuned_for
        self.indexed = index.size

    def search(self, queries: Tensor, k: int, where: Where | None = None) -> Found:
        """As `Gallery.search`; where only some images are searched among, exactly."""
        if where:
            return self.gallery.search(queries, k, where)
        later = np.arange(np.searchsorted(self.gallery.ids, self.known), len(self.gallery))
        left = len(self.gallery) - len(later)
        wanted = max(k, self.tuned_for)
        # What was removed is still in the index, in the way of what was not.
        asked = math.ceil(wanted * self.indexed / max(1, left))
        if asked > left:
            return self.gallery.search(queries, k)
        effort = math.ceil(self.effort * asked / self.tuned_for)
        vectors = torch.nn.functional.normalize(queries.float().cpu(), dim=1).numpy()
        new = self._rows(self.gallery.search_rows(queries, k, later).ids)
        while True:
            rows = self._rows(self.index.candidates(vectors, asked, effort))
            # More than elsewhere may be removed around a query; and the part of the index that was looked at
            # may hold too few.
            if not ((rows >= 0).sum(axis=1) < wanted).any():
                return _decide(self.gallery, vectors, np.concatenate([rows, new], axis=1), k)
            if asked >= self.known and effort >= MOST:
                return self.gallery.search(queries, k)
            asked, effort = min(2 * asked, self.known), 2 * effort

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the gallery, −1 where it has no such id."""
        rows = np.searchsorted(self.gallery.ids, ids).clip(max=len(self.gallery) - 1)
        return np.where(self.gallery.ids[rows] == ids, rows, -1)


def build_index(gallery: Gallery, description: Mapping[str, Any], *, recall: float, k: int) -> Measured:
    """Index a gallery; a former index is replaced when the new one has the wanted recall, and not before.

    Args:
        gallery: with images.
        description: of the kind of index as plain data: `_target_` and its arguments.
        recall: share of the `k` nearest that must be found.
        k: of this recall.

    Raises:
        ValueError: the gallery is empty, there is no such kind, or it finds less however hard it tries.
    """
    if len(gallery) < 2:
        raise ValueError(f"gallery={gallery.folder} holds {len(gallery)} images: nothing to index.")
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall}: wanted a share above 0, at most 1.")
    kind = made_kind(description)
    refusal = f"Another process indexes gallery '{gallery.folder}'. Wait for it."
    with refusing_lock(gallery.folder / ".index.lock", refusal):
        for unfinished in gallery.folder.glob(f".{FOLDER}.[0-9]*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return _build(gallery, kind, description, recall, k)


def _build(gallery: Gallery, kind: Kind, description: Mapping[str, Any], recall: float, k: int) -> Measured:
    temporary = gallery.folder / f".{FOLDER}.{os.getpid()}"
    temporary.mkdir()
    try:
        index = kind.build(gallery, temporary)
        measured = _tuned(gallery, index, recall, min(k, len(gallery) - 1), temporary)
        content = {
            "kind": dict(description),
            "bundle": gallery.bundle,
            "known": int(gallery.ids[-1]) + 1,
            "measured": asdict(measured),
        }
        (temporary / DESCRIPTION).write_text(json.dumps(content, indent=2), encoding="utf-8")
        index.publish()
        _replace(gallery.folder / FOLDER, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return measured


def _replace(folder: Path, new: Path) -> None:
    """Put a new folder in the place of one that may be there, with nothing slow between."""
    former = new.with_name(f"{new.name}.former")
    if folder.exists():
        os.replace(folder, former)
    os.replace(new, folder)
    shutil.rmtree(former, ignore_errors=True)


def remove_index(gallery: Gallery) -> None:
    """From now on the gallery is searched exactly."""
    shutil.rmtree(gallery.folder / FOLDER, ignore_errors=True)


def searchable(gallery: Gallery) -> Gallery | IndexedGallery:
    """The gallery with its index, if it has one.

    Raises:
        ValueError: the index cannot be read.
    """
    folder = gallery.folder / FOLDER
    if not folder.is_dir():
        return gallery
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        index = made_kind(content["kind"]).load(gallery, folder)
        effort, k = (int(content["measured"][name]) for name in ("effort", "k"))
        if effort < 1 or k < 1:  # by which search would never end
            raise ValueError(f"effort={effort}, k={k}: wanted at least 1")
        return IndexedGallery(gallery, index, int(content["known"]), effort, k + 1)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The index of gallery '{gallery.folder}' cannot be used ({error}). Make it again: "
            f"unseen index gallery={gallery.folder} index=…"
        ) from error


def made_kind(description: Mapping[str, Any]) -> Kind:
    """The kind of index that a configuration describes.

    Raises:
        ValueError: it is none of unseen's.
    """
    kind: Kind = made(description, ("unseen.deploy.index",))
    return kind


def _tuned(gallery: Gallery, index: Index, recall: float, k: int, folder: Path) -> Measured:
    """The least effort that finds enough."""
    rows = np.sort(np.random.default_rng(0).permutation(len(gallery))[:SAMPLE])
    queries = torch.from_numpy(np.array(gallery.embeddings[rows]))
    start = time.perf_counter()
    wanted = _others(gallery.search(queries, k + 1), gallery.ids[rows])
    exact = (time.perf_counter() - start) / len(rows)
    effort, found = 1, 0.0
    while effort <= MOST:
        indexed = IndexedGallery(gallery, index, int(gallery.ids[-1]) + 1, effort, k + 1)
        start = time.perf_counter()
        answer = indexed.search(queries, k + 1)
        seconds = (time.perf_counter() - start) / len(rows)
        found = _recall(_others(answer, gallery.ids[rows]), wanted)
        if found >= recall:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            return Measured(effort, found, k, len(rows), 1000 * seconds, 1000 * exact, size)
        effort *= 2
    raise ValueError(
        f"This index finds {found:.3f} of the {k} nearest where {recall} is wanted, however hard it tries. "
        "Lower recall, or choose another index: hnsw finds more than ivf_pq, exact finds all."
    )


def _others(found: Found, own: NDArray[np.int64]) -> list[set[int]]:
    """What was found beside the query itself."""
    return [set(ids.tolist()) - {int(one), -1} for ids, one in zip(found.ids, own, strict=True)]


def _recall(found: list[set[int]], wanted: list[set[int]]) -> float:
    """Share of what is wanted that was found."""
    hits = sum(len(one & other) for one, other in zip(found, wanted, strict=True))
    return hits / max(1, sum(map(len, wanted)))


def _decide(gallery: Gallery, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
    """The `k` nearest of candidates `(Q, c)`, by float64 similarities; ties go to the lower id."""
    found = nothing(len(queries), k)
    for query, own in enumerate(rows):
        some = np.unique(own[own >= 0])
        cosines = (gallery.embeddings[some].astype(np.float64) @ queries[query]).astype(np.float32)
        best = np.lexsort((some, -cosines))[:k]
        found.ids[query, : len(best)] = gallery.ids[some[best]]
        found.similarities[query, : len(best)] = cosines[best]
    return found
