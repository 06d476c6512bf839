"""A gallery: the embeddings of many images with what is known of each, on disk, to be searched.

A folder of segments, each an `.npy` (memory-mapped) and a Parquet table of the same rows, and one
`gallery.json` that names those that count. It is written last and replaces the former at once: whoever dies
in the middle of a change leaves the gallery as it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.deploy.listing import LABEL, Where, matching, pyarrow
from unseen.files import refusing_lock, replacing, sync
from unseen.retrieval import search

FORMAT = 1
"""Raised when an older version could not read what is written."""
DESCRIPTION = "gallery.json"
FEW = 8
"""Segments that are read as fast as one; more are joined."""
COPIED = 65_536
"""Rows in memory while segments are joined."""
PATIENCE = 60.0
"""Seconds that a change waits for another one: long work is not to end because of a short one."""
ROUNDED = 1e-5
"""What the length of an embedding may be off 1 by."""
PATH, MODIFIED = "path", "modified"


class Found(NamedTuple):
    """The nearest images of `Q` queries, nearest first.

    Args:
        ids: `(Q, k)` int64, -1 where there are fewer.
        similarities: `(Q, k)` float32, cosine; -inf likewise.
    """

    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]


class Known(NamedTuple):
    """Of one image: its id, and when and how large its file was."""

    id: int
    modified: str


class _Content(NamedTuple):
    ids: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    columns: dict[str, NDArray[np.object_]]


class Gallery:
    """Images by their embeddings. Make one with `create`, or `open` it.

    Args:
        folder: of the gallery.
        state: what `gallery.json` holds.

    Attributes:
        bundle: hash of the bundle that embedded the images.
        size: dimensions of an embedding, d.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self._state = state
        self.bundle, self.size = str(state["bundle"]), int(state["size"])

    @classmethod
    def open(cls, folder: str | Path) -> Gallery:
        """A gallery that is there.

        Raises:
            ValueError: it is none, of a later format, or files of it are missing.
        """
        path = Path(folder).expanduser() / DESCRIPTION
        try:
            state: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(
                f"gallery={folder}: there is no {DESCRIPTION} in it. Make one: "
                f"unseen embed bundle=… images=… gallery={folder}"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"'{path}' is not the description of a gallery: {error}.") from error
        form = state.get("format") if isinstance(state, dict) else None
        if form != FORMAT:
            raise ValueError(f"'{path}' is of format {form}; this version of unseen reads {FORMAT}.")
        try:
            gallery = cls(path.parent, state)
            len(gallery)
            return gallery
        except (OSError, KeyError, ValueError, TypeError, EOFError) as error:
            if isinstance(error, FileNotFoundError) and gallery.is_outdated:
                return cls.open(folder)  # its parts were joined meanwhile
            raise ValueError(f"gallery={folder}: a part cannot be read ({error}). Embed it again.") from error

    @classmethod
    def create(cls, folder: str | Path, bundle: str, size: int) -> Gallery:
        """An empty gallery of what a bundle embeds, or the one of the same bundle that is there.

        Raises:
            ValueError: the folder holds a gallery of another bundle, or something else.
        """
        folder = Path(folder).expanduser()
        if (folder / DESCRIPTION).is_file():
            gallery = cls.open(folder)
            gallery.require(bundle)
            return gallery
        # Hidden names are of another process that creates it, or of one that died.
        if folder.exists() and (not folder.is_dir() or any(path.name[0] != "." for path in folder.iterdir())):
            raise ValueError(f"gallery={folder} holds something that is no gallery. Name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        empty = {"segments": [], "removed": [], "next_id": 0, "changes": 0}
        gallery = cls(folder, {"format": FORMAT, "bundle": bundle, "size": size, **empty})
        gallery._write(gallery._state)
        return gallery

    def require(self, bundle: str) -> None:
        """Refuse another bundle.

        Raises:
            ValueError: the gallery was not embedded by this bundle; similarities would mean nothing.
        """
        if bundle != self.bundle:
            raise ValueError(
                f"gallery={self.folder} was embedded by bundle {self.bundle[:12]}, this is bundle "
                f"{bundle[:12]}: other weights or another preparation, whose embeddings cannot be compared. "
                "Embed the images again, into another folder."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_outdated(self) -> bool:
        """Whether it was changed on disk since it was opened."""
        try:
            written = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return True
        return bool(written != self._state)

    @property
    def columns(self) -> list[str]:
        """Names of what is known of an image: `path`, `label`, and what came with it."""
        return [name for name in self._content.columns if name != MODIFIED]

    @property
    def version(self) -> str:
        """Changes with every change of the images."""
        return f"{self._state['next_id']}-{len(self)}-{self._state['changes']}"

    def column(self, name: str) -> NDArray[np.object_]:
        """`(N,)` texts, empty where nothing is known.

        Raises:
            ValueError: there is no such column.
        """
        if name not in self._content.columns:
            raise ValueError(f"The gallery has no column '{name}'. Columns: {', '.join(self.columns)}.")
        return self._content.columns[name]

    def row(self, id: int) -> dict[str, Any]:
        """What is known of an image: `id`, `path`, `label` and more.

        Raises:
            KeyError: there is no image with this id.
        """
        row = self._rows([id])[0]
        return {"id": int(id), **{name: self._content.columns[name][row] for name in self.columns}}

    def search(self, queries: Tensor, k: int, where: Where | None = None) -> Found:
        """The `k` nearest images of each query, exactly; ties go to the lower id.

        Args:
            queries: `(Q, d)`.
            k: how many.
            where: column → the text, or texts, that an image must have there.

        Raises:
            ValueError: there is no such column, or queries are of another size.
        """
        return self.search_rows(queries, k, self.select(where))

    def search_rows(self, queries: Tensor, k: int, rows: NDArray[np.int64]) -> Found:
        """As `search`, among the images of some rows, ascending."""
        if queries.ndim != 2 or queries.shape[1] != self.size:
            raise ValueError(f"Queries have shape {tuple(queries.shape)}; wanted (Q, {self.size}).")
        if len(rows) == 0:
            return nothing(len(queries), k)
        whole = len(rows) == len(self)
        embeddings = torch.from_numpy(np.asarray(self.embeddings if whole else self.embeddings[rows]))
        ids = torch.from_numpy(self.ids[rows])
        found = search(queries.float().cpu(), embeddings, k=k, gallery_ids=ids)
        return Found(found.ids.numpy(), found.similarities.numpy())

    def select(self, where: Where | None) -> NDArray[np.int64]:
        """Rows of the images that have these texts.

        Raises:
            ValueError: there is no such column.
        """
        shown = {name: self._content.columns[name] for name in self.columns}
        return matching(shown, where or {}, len(self))

    def ids_of(self, named: Sequence[int | str]) -> list[int]:
        """Ids of images that are named by id or by path.

        Raises:
            ValueError: there is no such image.
        """
        known = {str(id): int(id) for id in self.ids}
        known |= {place: found.id for place, found in self.known().items()}
        missing = [name for name in named if str(name) not in known]
        if missing:
            raise ValueError(f"gallery={self.folder}: there is no image '{missing[0]}' (an id or a path).")
        return [known[str(name)] for name in named]

    def known(self) -> dict[str, Known]:
        """Place → what is known of its file; tells what need not be embedded again."""
        rows = zip(self.ids.tolist(), self._content.columns[MODIFIED], strict=True)
        return dict(zip(self._content.columns[PATH], itertools.starmap(Known, rows), strict=True))

    def append(
        self,
        embeddings: NDArray[np.float32],
        columns: Mapping[str, Sequence[str]],
        replaced: Sequence[int] = (),
    ) -> None:
        """Add images, with new ids.

        Args:
            embeddings: `(n, d)`; they are brought to length 1.
            columns: `n` texts each: `path`, `label`, `modified` and more.
            replaced: ids of images that these take the place of.
        """
        with self._changing() as state:
            name = f"{state['changes']:06d}"
            ids = np.arange(state["next_id"], state["next_id"] + len(embeddings))
            with replacing(self.folder / f"{name}.npy") as temporary:
                np.save(temporary, unit(embeddings))
            self._write_table(name, ids, columns)
            state["removed"] = sorted({*state["removed"], *map(int, replaced)})
            state["next_id"] += len(embeddings)
            state["segments"] = [*state["segments"], name]

    def remove(self, ids: Sequence[int]) -> None:
        """Take images out.

        Raises:
            KeyError: there is no image with one of these ids.
        """
        self._rows(ids)
        with self._changing() as state:
            state["removed"] = sorted({*state["removed"], *map(int, ids)})

    def compact(self) -> None:
        """Join segments into one, without what was removed; nothing changes for whoever searches."""
        if len(self._state["segments"]) <= 1 and not self._state["removed"]:
            return
        with self._changing() as state:
            name = f"{state['changes']:06d}"
            with replacing(self.folder / f"{name}.npy") as temporary:
                joined = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=np.float32, shape=(len(self), self.size)
                )
                for start in range(0, len(self), COPIED):
                    joined[start : start + COPIED] = self.embeddings[start : start + COPIED]
                joined.flush()
                del joined
            self._write_table(name, self.ids, self._content.columns)
            state["segments"], state["removed"] = [name], []

    def tidy(self) -> None:
        """Join segments where there are many."""
        if len(self._state["segments"]) > FEW:
            self.compact()

    def _rows(self, ids: Sequence[int]) -> NDArray[np.int64]:
        wanted = np.asarray(ids, dtype=np.int64)
        rows = np.searchsorted(self.ids, wanted).clip(max=max(len(self) - 1, 0))
        missing = wanted if len(self) == 0 else wanted[self.ids[rows] != wanted]
        if len(missing):
            raise KeyError(f"There is no image with id {missing[0]} in gallery '{self.folder}'.")
        return rows

    @property
    def ids(self) -> NDArray[np.int64]:
        """`(N,)`, ascending. An image keeps its id; one that was removed leaves its id unused."""
        return self._content.ids

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`(N, d)`, of length 1; memory-mapped where they lie in one piece."""
        return self._content.embeddings

    @functools.cached_property
    def _content(self) -> _Content:
        """Read when it is first needed: who only adds needs nothing of what is there."""
        names = self._state["segments"]
        tables = [pyarrow().parquet.read_table(self._table(name)) for name in names]
        parts = [np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in names]
        for name, table, part in zip(names, tables, parts, strict=True):
            if part.shape != (table.num_rows, self.size):
                raise ValueError(f"{name}.npy holds {part.shape}, not ({table.num_rows}, {self.size})")
        known = dict.fromkeys([PATH, LABEL, MODIFIED, *(n for t in tables for n in t.column_names)])
        ids = _joined([table["id"].to_numpy() for table in tables], np.int64)
        kept = ~np.isin(ids, np.asarray(self._state["removed"], dtype=np.int64))
        columns = {
            name: _joined([_texts(table, name) for table in tables], np.object_)[kept]
            for name in known
            if name != "id"
        }
        if len(parts) == 1 and kept.all():
            return _Content(ids, parts[0], columns)
        empty = np.zeros((0, self.size), dtype=np.float32)
        return _Content(ids[kept], (np.concatenate(parts) if parts else empty)[kept], columns)

    def _become(self, state: dict[str, Any]) -> None:
        self._state = state
        self.__dict__.pop("_content", None)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The state of this moment, to be changed; then written, and files that no longer count deleted.

        Raises:
            ValueError: another process is changing the gallery.
        """
        refusal = f"Another process is changing gallery '{self.folder}'. Wait for it."
        with refusing_lock(self.folder / ".lock", refusal, PATIENCE):
            written = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
            if written != self._state:
                self._become(written)
            state = {**self._state, "changes": self._state["changes"] + 1}
            yield state
            # Disks write in any order: after a power cut the description must not name what is not there.
            for name in {*state["segments"]} - {*self._state["segments"]}:
                sync(self.folder / f"{name}.npy")
                sync(self._table(name))
            sync(self.folder)
            self._write(state)
            sync(self.folder)
            self._become(state)
            self._sweep()

    def _write(self, state: dict[str, Any]) -> None:
        with replacing(self.folder / DESCRIPTION) as temporary, temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())

    def _write_table(self, name: str, ids: NDArray[np.int64], columns: Mapping[str, Any]) -> None:
        arrow = pyarrow()
        texts = {key: arrow.array(list(values), arrow.string()) for key, values in columns.items()}
        with replacing(self._table(name)) as temporary:
            arrow.parquet.write_table(arrow.table({"id": arrow.array(ids), **texts}), temporary)

    def _table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def _sweep(self) -> None:
        """Delete segments that the description no longer names, also those of whoever died."""
        unfinished = self.folder.glob(".[0-9]*.*")
        for path in itertools.chain(self.folder.glob("[0-9]*.*"), unfinished):
            if path.suffix in (".npy", ".parquet") and path.stem not in self._state["segments"]:
                path.unlink(missing_ok=True)


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of length 1; those that are, but for rounding, stay as they are, and zeros too."""
    given = np.ascontiguousarray(embeddings, dtype=np.float32)
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    is_other = (np.abs(lengths - 1) > ROUNDED) & (lengths > 0)
    return np.where(is_other, given / np.where(is_other, lengths, 1), given) if is_other.any() else given


def nothing(queries: int, k: int) -> Found:
    """What is found where there is nothing."""
    return Found(np.full((queries, k), -1), np.full((queries, k), -np.inf, dtype=np.float32))


def _joined(parts: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.zeros(0, dtype=kind)


def _texts(table: Any, name: str) -> NDArray[np.object_]:
    if name not in table.column_names:
        return np.full(table.num_rows, "", dtype=np.object_)
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.object_)
