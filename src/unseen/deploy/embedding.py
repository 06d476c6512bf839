"""Embed many images into a gallery: what is there already is skipped, what cannot be read is listed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unseen.deploy.gallery import MODIFIED, PATH, Gallery, Known
from unseen.deploy.listing import Listing, located
from unseen.deploy.model import Model, starts
from unseen.deploy.runners.local import Part, Runner, embed_here
from unseen.files import replacing

SEGMENT = 2048
"""Images, or a batch more, that are saved at a time: what a crash can lose."""
UNREADABLE = "unreadable.csv"
TAKEN = ("id", "query", "rank", "similarity", MODIFIED)
"""Names that a gallery or a search gives columns of its own."""
Progress = Callable[[int], None]


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
        ValueError: the gallery is of another bundle, or is being changed by another process; or the batch
            size is no whole number from 1 upwards.
        PassingError: an image cannot be read now, because of this machine.
    """
    starts(len(listing), batch_size)
    gallery = Gallery.create(folder, str(model.facts["bundle"]), model.size)
    changed = [_modified(place) for place in listing.places]
    known = gallery.known()
    # A place that is listed twice is one image.
    first: dict[str, int] = {}
    for row, place in enumerate(listing.places):
        first.setdefault(place, row)
    unreadable = {place: "its name is not UTF-8" for place in first if not _is_text(place)}
    todo = [
        row
        for place, row in first.items()
        if place not in unreadable and (place not in known or known[place].modified != changed[row])
    ]
    progress(len(listing) - len(todo))
    again = set(todo)
    there = {place: row for place, row in first.items() if place in known and row not in again}
    columns = {_own(name): values for name, values in listing.columns.items()}
    _rewrite(gallery, columns, there, known)
    embedded = 0
    for part in _pieces(runner(model, [listing.places[row] for row in todo], batch_size), progress):
        rows = [todo[row] for row in part.rows]
        unreadable |= part.unreadable
        if rows:
            texts = {name: [values[row] for row in rows] for name, values in columns.items()}
            texts |= {PATH: [listing.places[row] for row in rows], MODIFIED: [changed[row] for row in rows]}
            replaced = [known[place].id for place in texts[PATH] if place in known]
            gallery.append(part.embeddings, texts, replaced)
            embedded += len(rows)
    gallery.tidy()
    _write_unreadable(gallery.folder / UNREADABLE, unreadable)
    return Outcome(embedded, len(there), unreadable)


def _own(name: str) -> str:
    """The name in a gallery of a listing's column: what a gallery or a search says itself is not hidden."""
    return f"given_{name}" if name in TAKEN else name


def _is_text(place: str) -> bool:
    """Whether it can be written down: a file name may hold any bytes."""
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rewrite(
    gallery: Gallery,
    columns: Mapping[str, Sequence[str]],
    there: Mapping[str, int],
    known: Mapping[str, Known],
) -> None:
    """Give images that are there the texts of the listing, where it says something else by now.

    Args:
        gallery: with the images.
        columns: of the listing.
        there: place → row of the listing.
        known: place → what the gallery knows of the file.
    """
    rows = np.searchsorted(gallery.ids, [known[place].id for place in there])
    changed = np.zeros(len(there), dtype=bool)
    for name, values in columns.items():
        said = np.array([values[row] for row in there.values()], dtype=np.object_)
        changed |= gallery.column(name)[rows] != said if name in gallery.columns else True
    if not changed.any():
        return
    places = [place for place, differs in zip(there, changed, strict=True) if differs]
    texts = {name: [values[there[place]] for place in places] for name, values in columns.items()}
    texts |= {PATH: places, MODIFIED: [known[place].modified for place in places]}
    gallery.append(gallery.embeddings[rows[changed]], texts, [known[place].id for place in places])


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


def _write_unreadable(path: Path, unreadable: dict[str, str]) -> None:
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(unreadable.items())
