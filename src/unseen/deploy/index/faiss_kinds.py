"""Indexes of faiss, in a file: a graph for speed, compressed vectors for memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.deploy.gallery import Gallery

FILE = "index.faiss"
TRAINED_ON = 100_000
"""Vectors that clusters and codes are learned from."""
ADDED = 65_536
"""Vectors that are read at a time."""


@dataclass(frozen=True)
class Graph:
    """Hierarchical navigable small world (Malkov & Yashunin 2018): fastest, vectors stay as they are.

    Args:
        links: of each image to others (M); memory beyond the vectors is about `8 · links` bytes an image.
        building_effort: candidates looked at for each link (efConstruction).
    """

    links: int
    building_effort: int

    def build(self, gallery: Gallery, folder: Path) -> FaissIndex:
        faiss = _faiss()
        index = faiss.IndexHNSWFlat(gallery.size, self.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.building_effort
        return _filled(index, gallery, folder, _set_graph)

    def load(self, gallery: Gallery, folder: Path) -> FaissIndex:
        return FaissIndex(_faiss().read_index(str(folder / FILE)), _set_graph, several=1)


@dataclass(frozen=True)
class Compressed:
    """Clusters of product-quantised residuals (Jégou et al. 2011): smallest; candidates are decided exactly.

    Args:
        dimensions_per_byte: of an embedding that one byte stands for.
        candidates: fetched for each neighbour that is wanted, as compressed similarities are rough.
    """

    dimensions_per_byte: int
    candidates: int

    def build(self, gallery: Gallery, folder: Path) -> FaissIndex:
        faiss = _faiss()
        clusters = max(1, min(round(4 * len(gallery) ** 0.5), len(gallery) // 39))
        codes = next(
            parts
            for parts in range(max(1, gallery.size // self.dimensions_per_byte), 0, -1)
            if gallery.size % parts == 0
        )
        # Faiss learns nothing sensible from fewer vectors than it has codes for.
        bits = min(8, max(1, int(np.log2(max(2, len(gallery) // 39)))))
        quantizer = faiss.IndexFlatIP(gallery.size)
        index = faiss.IndexIVFPQ(quantizer, gallery.size, clusters, codes, bits, faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).permutation(len(gallery))[:TRAINED_ON]
        index.train(np.ascontiguousarray(gallery.embeddings[np.sort(rows)]))
        return _filled(index, gallery, folder, _set_clusters, self.candidates)

    def load(self, gallery: Gallery, folder: Path) -> FaissIndex:
        return FaissIndex(_faiss().read_index(str(folder / FILE)), _set_clusters, self.candidates)


@dataclass
class FaissIndex:
    """An index of faiss whose numbers are the gallery's ids.

    Args:
        index: of faiss.
        set_effort: what more effort means to it.
        several: candidates for each neighbour that is wanted.
    """

    index: Any
    set_effort: Callable[[Any, int, int], None]
    several: int

    @property
    def size(self) -> int:
        return int(self.index.ntotal)

    def candidates(self, queries: NDArray[np.float32], k: int, effort: int) -> NDArray[np.int64]:
        count = min(self.several * k, self.index.ntotal)
        self.set_effort(self.index.index, count, effort)
        _, ids = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), max(1, count))
        return np.asarray(ids, dtype=np.int64)

    def publish(self) -> None:
        """Nothing is outside the folder."""


def _filled(
    index: Any, gallery: Gallery, folder: Path, set_effort: Callable[[Any, int, int], None], several: int = 1
) -> FaissIndex:
    faiss = _faiss()
    numbered = faiss.IndexIDMap2(index)
    for start in range(0, len(gallery), ADDED):
        part = slice(start, start + ADDED)
        numbered.add_with_ids(np.ascontiguousarray(gallery.embeddings[part]), gallery.ids[part])
    faiss.write_index(numbered, str(folder / FILE))
    return FaissIndex(faiss.read_index(str(folder / FILE)), set_effort, several)


def _set_graph(index: Any, count: int, effort: int) -> None:
    _faiss().downcast_index(index).hnsw.efSearch = max(count, 16 * effort)


def _set_clusters(index: Any, count: int, effort: int) -> None:
    clusters = _faiss().downcast_index(index)
    clusters.nprobe = min(effort, clusters.nlist)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "index=hnsw and index=ivf_pq need faiss, which is not installed: "
            "pip install 'unseen-dml[index]'. index=exact needs nothing."
        ) from error
    return faiss
