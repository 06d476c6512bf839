"""Qdrant, the server that people already run, or its own mode without a server, in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.deploy.gallery import Gallery

UPLOADED = 1024
"""Points that are sent at a time."""


@dataclass(frozen=True)
class Qdrant:
    """A collection of a Qdrant server, with all that is known of each image as payload.

    Args:
        url: of the server, whose key is taken from `QDRANT_API_KEY`; none for Qdrant's mode without one, in
            the folder of the index.
        collection: its name; what is there under this name is replaced.
    """

    url: str | None
    collection: str

    def build(self, gallery: Gallery, folder: Path) -> QdrantIndex:
        models = _qdrant().models
        client = self._client(folder)
        client.delete_collection(self.collection)
        client.create_collection(
            self.collection,
            vectors_config=models.VectorParams(size=gallery.size, distance=models.Distance.COSINE),
        )
        columns = {name: gallery.column(name) for name in gallery.columns}
        for start in range(0, len(gallery), UPLOADED):
            rows = range(start, min(len(gallery), start + UPLOADED))
            client.upsert(
                self.collection,
                models.Batch(
                    ids=gallery.ids[start : rows.stop].tolist(),
                    vectors=gallery.embeddings[start : rows.stop].tolist(),
                    payloads=[{name: texts[row] for name, texts in columns.items()} for row in rows],
                ),
            )
        return QdrantIndex(client, self.collection, self.url is not None)

    def load(self, gallery: Gallery, folder: Path) -> QdrantIndex:
        return QdrantIndex(self._client(folder), self.collection, self.url is not None)

    def _client(self, folder: Path) -> Any:
        if self.url is None:
            return _qdrant().QdrantClient(path=str(folder / "qdrant"))
        return _qdrant().QdrantClient(url=self.url, api_key=os.environ.get("QDRANT_API_KEY"))


@dataclass
class QdrantIndex:
    """A collection.

    Args:
        client: of Qdrant.
        collection: its name.
        approximate: effort means something to it; without a server it looks at all vectors.
    """

    client: Any
    collection: str
    approximate: bool

    def candidates(self, queries: NDArray[np.float32], k: int, effort: int) -> NDArray[np.int64]:
        models = _qdrant().models
        parameters = models.SearchParams(hnsw_ef=max(k, 16 * effort)) if self.approximate else None
        requests = [
            models.QueryRequest(query=query.tolist(), limit=k, params=parameters) for query in queries
        ]
        found = np.full((len(queries), k), -1, dtype=np.int64)
        for row, answer in enumerate(self.client.query_batch_points(self.collection, requests)):
            ids = [point.id for point in answer.points]
            found[row, : len(ids)] = ids
        return found


def _qdrant() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise ValueError(
            "index=qdrant needs qdrant-client, which is not installed: pip install 'unseen-dml[qdrant]'."
        ) from error
    return qdrant_client
