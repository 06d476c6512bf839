"""A bundle with its gallery, and how many questions to them are answered at once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.deploy.gallery import DESCRIPTION, Gallery
from unseen.deploy.index import indexed as index
from unseen.deploy.index.indexed import IndexedGallery, searchable
from unseen.deploy.listing import INSIDE, LABEL
from unseen.deploy.model import Model

Stamp = tuple[int, ...]


def stamp_of(folder: Path) -> Stamp:
    """Changes when the gallery or its index does."""
    found: list[int] = []
    for name in (DESCRIPTION, f"{index.FOLDER}/{index.DESCRIPTION}"):
        try:
            status = (folder / name).stat()
            found += [status.st_ino, status.st_mtime_ns, status.st_size]
        except OSError:
            found.append(0)
    return tuple(found)


class Query(NamedTuple):
    """A question.

    Args:
        image: prepared, `(3, S, S)`.
        k: neighbours; none for the embedding alone.
        label: class that neighbours must be of, if any.
    """

    image: Tensor
    k: int = 0
    label: str | None = None


class Answer(NamedTuple):
    """Its answer.

    Args:
        embedding: `(d,)`.
        ids: of the gallery, `(k,)`; -1 where there are fewer.
        similarities: `(k,)`.
    """

    embedding: Tensor
    ids: NDArray[np.int64]
    similarities: NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One bundle, of one or two that are compared.

    Args:
        name: for people.
        model: of the bundle.
        gallery: that it embedded.
        stamp: of the gallery's folder before it was opened; see `stamp_of`.

    Raises:
        ValueError: the gallery is empty, or of another bundle; its index cannot be used.
    """

    name: str
    model: Model
    gallery: Gallery
    stamp: Stamp = ()

    @classmethod
    def open(cls, name: str, model: Model, folder: str | Path) -> Side:
        """A bundle with the gallery of a folder, as it is now."""
        # First: a change while it is opened must be noticed.
        stamp = stamp_of(Path(folder).expanduser())
        return cls(name, model, Gallery.open(folder), stamp)

    @property
    def has_changed(self) -> bool:
        """Whether images came or went, or the index is another, since it was opened."""
        return stamp_of(self.gallery.folder) != self.stamp

    def reopened(self) -> Side:
        """The same with the gallery as it is now.

        Raises:
            ValueError: as when a side is made.
        """
        side = Side.open(self.name, self.model, self.gallery.folder)
        _ = side.classes, side.taps
        return side

    def __post_init__(self) -> None:
        self.gallery.require(self.model.facts["bundle"])
        if len(self.gallery) == 0:
            raise ValueError(f"The gallery of '{self.name}' is empty. Embed images into it first.")
        # An index that cannot be used is said at once, not to the first who asks.
        _ = self._searched

    @cached_property
    def _searched(self) -> Gallery | IndexedGallery:
        return searchable(self.gallery)

    @cached_property
    def classes(self) -> dict[str, int]:
        """Class → images of it, by name; those whose class is not known are left out."""
        counted = Counter(str(label) for label in self.gallery.column(LABEL) if label)
        return dict(sorted(counted.items()))

    @cached_property
    def taps(self) -> list[str]:
        """Layers that have attention."""
        return list(self.model.attention(np.zeros((8, 8, 3), dtype=np.uint8)).maps)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Embed all in one batch; search once for each kind of question."""
        embeddings = self.model.embed_prepared(torch.stack([query.image for query in queries]))
        alike: dict[tuple[int, str | None], list[int]] = defaultdict(list)
        for place, query in enumerate(queries):
            alike[query.k, query.label].append(place)
        nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        answers = [Answer(embedding, *nothing) for embedding in embeddings]
        for (k, label), places in alike.items():
            if k == 0:
                continue
            where = None if label is None else {LABEL: label}
            found = self._searched.search(embeddings[places], k, where)
            for place, ids, similarities in zip(places, *found, strict=True):
                answers[place] = Answer(embeddings[place], ids, similarities)
        return answers

    def examples(self, count: int, seed: int, label: str | None = None) -> list[int]:
        """Ids of images, of as many classes as there are; others for another seed."""
        ids, labels = self.gallery.ids, self.gallery.column(LABEL).astype(str)
        if label is not None:
            ids, labels = ids[labels == label], labels[labels == label]
        order = np.random.default_rng(seed).permutation(len(ids))
        met: Counter[str] = Counter()
        turns = []
        for place in order:
            turns.append(met[labels[place]])
            met[labels[place]] += 1
        return [int(ids[place]) for place in order[np.argsort(turns, kind="stable")[:count]]]

    def images(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """What a page may know of images: never where they lie."""
        return [self._image(self.gallery.row(int(id))) for id in ids]

    def _image(self, row: dict[str, Any]) -> dict[str, Any]:
        path = str(row["path"])
        return {
            "id": int(row["id"]),
            "label": str(row[LABEL]),
            "name": PurePath(path.rpartition(INSIDE)[2]).name,
            # The same in two galleries of the same files.
            "file": hashlib.sha256(path.encode()).hexdigest()[:16],
        }
