"""Qdrant, the server that people already run, or its own mode without a server, in a folder.

A collection is written under a name of its own; then an alias is turned to it, which a server does at once.
A crash before leaves the former collection as it was, and an unfinished one that the next build clears away.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from unseen.deploy.gallery import Gallery

STORE = "qdrant"
"""Folder of the collections of Qdrant's mode without a server."""
NAMED = "collection.txt"
"""Has the name under which a collection was written."""
UPLOADED = 1024
"""Points that are sent at a time."""
KEY, SERVER = "QDRANT_API_KEY", "QDRANT_URL"
"""Environment variables: the key, and the server that it is for."""


@dataclass(frozen=True)
class Qdrant:
    """A collection of a Qdrant server, with all that is known of each image as payload.

    Args:
        url: of the server, whose key is taken from `QDRANT_API_KEY`; none for Qdrant's mode without one, in
            the folder of the index. A gallery that is read may be anybody's: then the key is only sent to the
            server that `QDRANT_URL` names.
        collection: the alias that it is found under; what is there under this name is replaced at once.
    """

    url: str | None
    collection: str

    def build(self, gallery: Gallery, folder: Path) -> QdrantIndex:
        models = _qdrant().models
        client = self._client(folder, is_own=True)
        name = f"{self.collection}.{uuid4().hex}"
        size = models.VectorParams(size=gallery.size, distance=models.Distance.COSINE)
        with _answering(self.url, is_own=True):
            client.create_collection(name, vectors_config=size)
        columns = {name: gallery.column(name) for name in gallery.columns}
        for start in range(0, len(gallery), UPLOADED):
            rows = range(start, min(len(gallery), start + UPLOADED))
            client.upsert(
                name,
                models.Batch(
                    ids=gallery.ids[start : rows.stop].tolist(),
                    vectors=gallery.embeddings[start : rows.stop].tolist(),
                    payloads=[{name: texts[row] for name, texts in columns.items()} for row in rows],
                ),
            )
        (folder / NAMED).write_text(name, encoding="utf-8")
        return QdrantIndex(client, name, self.collection, self.url is not None)

    def load(self, gallery: Gallery, folder: Path) -> QdrantIndex:
        copied = None
        if (folder / STORE).is_dir():
            # Without a server who opens a store keeps it for himself: others could neither search nor index.
            copied = tempfile.TemporaryDirectory(prefix="unseen-qdrant-")
            shutil.copytree(folder / STORE, Path(copied.name) / STORE, ignore=shutil.ignore_patterns(".lock"))
        is_own = self.url is not None and _bare(self.url) == _bare(os.environ.get(SERVER, ""))
        client = self._client(folder if copied is None else Path(copied.name), is_own)
        with _answering(self.url, is_own):
            there = {one.name for one in client.get_collections().collections}
        # Not by the alias, which leads to whatever was indexed last: perhaps another gallery.
        name = (folder / NAMED).read_text(encoding="utf-8")
        if name not in there:
            raise ValueError(
                f"its collection '{name}' is gone: another gallery was indexed under the same name. Give "
                "each gallery its own: index.collection=<name>"
            )
        return QdrantIndex(client, name, self.collection, self.url is not None, copied)

    def _client(self, folder: Path, is_own: bool) -> Any:
        if self.url is None:
            return _qdrant().QdrantClient(path=str(folder / STORE))
        return _qdrant().QdrantClient(url=self.url, api_key=os.environ.get(KEY) if is_own else None)


@dataclass
class QdrantIndex:
    """A collection.

    Args:
        client: of Qdrant.
        collection: its name, or the alias.
        alias: that it is to be found under.
        approximate: effort means something to it; without a server it looks at all vectors.
        copied: folder of the copy that it reads, if it does; goes with it.
    """

    client: Any
    collection: str
    alias: str
    approximate: bool
    copied: tempfile.TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        if self.copied is not None:
            # Qdrant's own end of a client that nobody closed comes too late, and complains.
            weakref.finalize(self, self.client.close)

    @property
    def size(self) -> int:
        return int(self.client.count(self.collection).count)

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

    def publish(self) -> None:
        """Turn the alias to this collection, then remove those of former and of failed builds."""
        models = _qdrant().models
        names = {one.name for one in self.client.get_collections().collections}
        if self.alias in names:  # of a version that wrote without an alias
            self.client.delete_collection(self.alias)
        turned: list[Any] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.alias))
            for one in self.client.get_aliases().aliases
            if one.alias_name == self.alias
        ]
        create = models.CreateAlias(collection_name=self.collection, alias_name=self.alias)
        turned.append(models.CreateAliasOperation(create_alias=create))
        self.client.update_collection_aliases(turned)
        built = re.compile(re.escape(self.alias) + r"\.[0-9a-f]{32}")
        for name in names - {self.collection}:
            if built.fullmatch(name):
                self.client.delete_collection(name)


def _bare(url: str) -> str:
    return url.rstrip("/")


@contextmanager
def _answering(url: str | None, is_own: bool) -> Iterator[None]:
    """Say in words that a server does not answer, or refuses.

    Args:
        url: of the server.
        is_own: whether the key is sent to it.

    Raises:
        ConnectionError: naming the server.
    """
    errors = _qdrant().http.exceptions
    try:
        yield
    except (errors.ResponseHandlingException, errors.UnexpectedResponse) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"does it want a key ({KEY})?"
        if not is_own:
            remedy = f"is it yours? Then set {SERVER}={url}, so that {KEY} is sent to it."
        raise ConnectionError(
            f"index.url={url}: the Qdrant server does not answer as it should ({first}). Is it running, and "
            f"{remedy}"
        ) from error


def _qdrant() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise ValueError(
            "index=qdrant needs qdrant-client, which is not installed: pip install 'unseen-dml[qdrant]'."
        ) from error
    return qdrant_client
