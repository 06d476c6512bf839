"""Embed many images into a gallery: what is there already is skipped, what cannot be read is listed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unseen.deploy.gallery import MODIFIED, PATH, Gallery, Known
from unseen.deploy.listing import LABEL, Listing, located
from unseen.deploy.model import Model, starts
from unseen.deploy.runners.local import Part, Runner, embed_here
from unseen.files import refusing_lock, replacing

SEGMENT = 2048
"""Images, or a batch more, that are saved at a time: what a crash can lose."""
UNREADABLE = "unreadable.csv"
TAKEN = ("id", "query", "rank", "similarity", PATH, MODIFIED)
"""Names that a gallery or a search gives columns of its own."""
Progress = Callable[[int], None]
Texts = dict[str, NDArray[np.object_]]
"""Column → one text for each of some images."""


@dataclass(frozen=True)
class Outcome:
    """What became of the images of a listing.

    Args:
        embedded: how many are new in the gallery, or were embedded again as their file had changed.
        known: how many were there already, also those of which the listing now says something else.
        unreadable: place → why it could not be read; also in `unreadable.csv` of the gallery's folder.
    """

    embedded: int
    known: int
    unreadable: dict[str, str]


def embed_images(
    model: Model,
    listing: Listing,
    folder: str | Path,
    *,
    batch_size: int,
    progress: Progress,
    runner: Runner = embed_here,
) -> Outcome:
    """Embed images into a gallery, a new one or one of the same bundle, saved piece by piece.

    After a crash the same call goes on: images that are saved, and whose file has not changed since, are
    skipped.

    Args:
        model: loaded from a bundle.
        listing: of the images.
        folder: of the gallery.
        batch_size: images at a time.
        progress: called with the number of images that are done, once for each batch.
        runner: where they are embedded; by default here, on the device of the model.

    Raises:
        ValueError: the gallery is of another bundle, or another process embeds into it; a place is listed
            twice with different texts; or the batch size is no whole number from 1 upwards.
        PassingError: an image cannot be read now, because of this machine.
    """
    starts(len(listing), batch_size)
    first = _first_rows(listing)
    bundle = str(model.facts["bundle"])
    folder = Gallery.create(folder, bundle, model.size).folder
    refusal = f"Another process embeds into gallery '{folder}'. Wait; the same command takes what is left."
    with refusing_lock(folder / ".embedding.lock", refusal):
        gallery = Gallery.create(folder, bundle, model.size)
        return _embed(model, listing, first, gallery, batch_size, progress, runner)


def _embed(
    model: Model,
    listing: Listing,
    first: Mapping[str, int],
    gallery: Gallery,
    batch_size: int,
    progress: Progress,
    runner: Runner,
) -> Outcome:
    changed = [_modified(place) for place in listing.places]
    known = gallery.known()
    unreadable = {place: "its name is not UTF-8" for place in first if not _is_text(place)}
    todo = [
        row
        for place, row in first.items()
        if place not in unreadable and (place not in known or known[place].modified != changed[row])
    ]
    progress(len(listing) - len(todo))
    again = set(todo)
    there = {place: row for place, row in first.items() if place in known and row not in again}
    said = _Said(_own_names(listing.columns), gallery, known)
    _rewrite(gallery, said, there)
    embedded = 0
    for part in _pieces(runner(model, [listing.places[row] for row in todo], batch_size), progress):
        rows = [todo[row] for row in part.rows]
        unreadable |= part.unreadable
        if rows:
            places = [listing.places[row] for row in rows]
            found = said.texts(said.before(places), rows)
            texts: dict[str, Sequence[str]] = {name: values.tolist() for name, values in found.items()}
            texts |= {PATH: places, MODIFIED: [changed[row] for row in rows]}
            replaced = [known[place].id for place in texts[PATH] if place in known]
            gallery.append(part.embeddings, texts, replaced)
            embedded += len(rows)
    gallery.tidy()
    _write_unreadable(gallery.folder / UNREADABLE, unreadable, listing)
    return Outcome(embedded, len(there), unreadable)


def _first_rows(listing: Listing) -> dict[str, int]:
    """Place → its first row; a place that is listed twice is one image.

    Raises:
        ValueError: it has other texts the second time: there may be several things in one picture.
    """
    first: dict[str, int] = {}
    for row, place in enumerate(listing.places):
        before = first.setdefault(place, row)
        for name, values in listing.columns.items() if before != row else ():
            if values[before] != values[row]:
                raise ValueError(
                    f"'{place}' is listed twice, with {name} '{values[before]}' and '{values[row]}'. A "
                    "gallery holds an image once, as a whole: keep one row, or cut it into its parts."
                )
    return first


def _own_names(columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """A listing's columns as a gallery has them: what a gallery or a search says itself is not hidden."""
    named = {name: values for name, values in columns.items() if name not in TAKEN}
    for name in columns:
        if name in TAKEN:
            given = f"given_{name}"
            while given in named:
                given = f"given_{given}"
            named[given] = columns[name]
    return named


class _Said:
    """What is known of images: what a listing says, else what the gallery knows already.

    A listing says nothing of columns that it lacks, and by an empty label: that of a part of a folder, or of
    a table without labels, would else take away what a whole one had said.

    Args:
        columns: of the listing.
        gallery: of the moment before anything changes.
        known: place → what the gallery knows of the file.
    """

    def __init__(
        self, columns: Mapping[str, Sequence[str]], gallery: Gallery, known: Mapping[str, Known]
    ) -> None:
        self._listed, self._known, self._ids = columns, known, gallery.ids
        self._before = {name: gallery.column(name) for name in gallery.columns if name != PATH}

    def before(self, places: Sequence[str]) -> Texts:
        """Column → the texts that the gallery has of images, empty for those that are new."""
        ids = np.array([self._known[place].id if place in self._known else -1 for place in places], np.int64)
        known = ids >= 0
        at = np.searchsorted(self._ids, ids[known])
        found = {}
        for name, values in self._before.items():
            found[name] = np.full(len(places), "", dtype=np.object_)
            found[name][known] = values[at]
        return found

    def texts(self, before: Texts, rows: Sequence[int]) -> Texts:
        """Column → the texts of images.

        Args:
            before: what the gallery has of them.
            rows: of the listing, in the same order.
        """
        texts = dict(before)
        for name, values in self._listed.items():
            listed = np.array([values[row] for row in rows], dtype=np.object_)
            texts[name] = np.where(listed == "", before[name], listed) if name == LABEL else listed
        return texts

    def id_of(self, place: str) -> int:
        """Of an image that is known."""
        return self._known[place].id

    def modified(self, place: str) -> str:
        """When and how large its file was."""
        return self._known[place].modified


def _is_text(place: str) -> bool:
    """Whether it can be written down: a file name may hold any bytes."""
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rewrite(gallery: Gallery, said: _Said, there: Mapping[str, int]) -> None:
    """Give images that are there the texts of the listing, where it says something else by now.

    Args:
        gallery: with the images.
        said: what is known of them.
        there: place → row of the listing.
    """
    places = list(there)
    before = said.before(places)
    texts = said.texts(before, list(there.values()))
    changed = np.zeros(len(places), dtype=bool)
    for name, values in texts.items():
        changed |= values != before[name] if name in before else True
    rows = np.flatnonzero(changed)
    if not len(rows):
        return
    others = [places[row] for row in rows]
    now: dict[str, Sequence[str]] = {name: values[rows].tolist() for name, values in texts.items()}
    now |= {PATH: others, MODIFIED: [said.modified(place) for place in others]}
    ids = [said.id_of(place) for place in others]
    gallery.append(gallery.embeddings[np.searchsorted(gallery.ids, ids)], now, ids)


def _pieces(parts: Iterator[Part], progress: Progress) -> Iterator[Part]:
    """Joined until they are as many as are saved at a time; progress is told of each."""
    waiting: list[Part] = []
    count = 0
    for part in parts:
        waiting.append(part)
        done = len(part.rows) + len(part.unreadable)
        count += done
        progress(done)
        if count >= SEGMENT:
            yield _joined(waiting)
            waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Part]) -> Part:
    return Part(
        np.concatenate([part.embeddings for part in parts]),
        [row for part in parts for row in part.rows],
        {place: reason for part in parts for place, reason in part.unreadable.items()},
    )


def _modified(place: str) -> str:
    """When a file was changed and how large it is; of a tar file, for all that lies in it."""
    try:
        status = os.stat(located(place)[0])
    except OSError:
        return ""
    return f"{status.st_mtime_ns}-{status.st_size}"


def _write_unreadable(path: Path, unreadable: dict[str, str], listing: Listing) -> None:
    """List what cannot be read of this listing, and what could not of others that is still there."""
    looked_at = {located(place)[0] for place in listing.places}
    others = {
        place: reason
        for place, reason in _read_unreadable(path).items()
        if located(place)[0] not in looked_at and _modified(place)
    }
    if not others and not unreadable:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((others | unreadable).items())


def _read_unreadable(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row[0]: row[1] for row in list(csv.reader(file))[1:] if len(row) == 2}
