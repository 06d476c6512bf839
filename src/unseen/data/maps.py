"""Feature maps of images, kept in memory-mapped files that all runs and processes share.

A file `<key>.maps` holds one row of float32 for each image, the maps one after another, each `(H, W, C)`: the
layout that convolutions prefer. It gets its name when it is whole; what a killed process leaves behind
(`<key>.partial`) the next one goes on with.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.files import exclusive_lock

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Shapes = dict[str, tuple[int, int, int]]
"""Name of a map → (C, H, W), in the order in which a row holds them."""

VERSION = 1
"""Of the file's layout and of the values in it, for its key: older files are then made anew."""
NUMBER = np.dtype("<f4")


class MapsError(ValueError):
    """Feature maps that cannot be kept; the message says why."""


class MapFile:
    """Maps of some images.

    Args:
        path: a whole file.
        shapes: of the maps in a row.
        rows: `(N,)` rows of the manifest, ascending, one for each row of the file.
    """

    def __init__(self, path: Path, shapes: Shapes, rows: Rows) -> None:
        self.path = path
        self.shapes = shapes
        self.rows = rows
        # For reading only: Linux counts a private writable mapping as memory and refuses a large one.
        shape = (len(rows), sum(math.prod(one) for one in shapes.values()))
        self._values = np.memmap(path, dtype=NUMBER, mode="r", shape=shape)

    def covers(self, rows: Rows) -> bool:
        """Whether it has the maps of all these images."""
        return bool(np.isin(rows, self.rows).all())

    def maps(self, rows: Rows) -> dict[str, Tensor]:
        """Of some images, by name: `(B, C, H, W)` with channels last in memory."""
        places = np.searchsorted(self.rows, rows)
        found, start = {}, 0
        for name, (channels, height, width) in self.shapes.items():
            end = start + channels * height * width
            values = torch.from_numpy(np.asarray(self._values[places, start:end]))  # a copy
            found[name] = values.view(-1, height, width, channels).permute(0, 3, 1, 2)
            start = end
        return found


@dataclass(frozen=True)
class StoredMaps:
    """What batches carry in place of images.

    Args:
        files: of the parts of a split, each of images of its own.
        names: of the maps of a batch, in their order; one may come twice.
    """

    files: Sequence[MapFile]
    names: Sequence[str]

    def file_of(self, rows: Rows) -> MapFile | None:
        """The file that has the maps of all these images, if one has."""
        return next((file for file in self.files if file.covers(rows)), None)


def kept_maps(
    folder: Path, key: str, rows: Rows, shapes: Shapes, compute: Callable[[Rows], Iterable[Sequence[Tensor]]]
) -> MapFile:
    """The file of this key, made first if it is not there.

    Of several processes that need it at once, one makes it and the others wait.

    Args:
        folder: where such files lie.
        key: names what determines the maps.
        rows: `(N,)` of the manifest, ascending.
        shapes: of the maps.
        compute: some of the rows → batches in their order, of each map `(B, C, H, W)`.

    Raises:
        MapsError: the folder cannot be written.
    """
    path = folder / f"{key}.maps"
    if (found := _whole(path, rows, shapes)) is not None:  # before locking: the folder may be read-only
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        waiting = "Another process is computing these feature maps: waiting for it (%s)."
        with exclusive_lock(lock, lambda: log.info(waiting, lock)):
            if (found := _whole(path, rows, shapes)) is not None:  # another process has made it meanwhile
                return found
            _make(path, rows, shapes, compute)
    except OSError as error:
        raise MapsError(
            f"{error.strerror}: feature maps cannot be kept in '{folder}'. Free space there, or choose "
            "another folder: data.cache_dir=<folder>"
        ) from error
    return MapFile(path, shapes, rows)


def bytes_of(count: int, shapes: Shapes) -> int:
    """What the maps of so many images take."""
    return count * NUMBER.itemsize * sum(math.prod(shape) for shape in shapes.values())


def _whole(path: Path, rows: Rows, shapes: Shapes) -> MapFile | None:
    return MapFile(path, shapes, rows) if _size(path) == bytes_of(len(rows), shapes) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _make(
    path: Path, rows: Rows, shapes: Shapes, compute: Callable[[Rows], Iterable[Sequence[Tensor]]]
) -> None:
    partial = path.with_suffix(".partial")
    row_bytes = bytes_of(1, shapes)
    done = min(len(rows), _size(partial) // row_bytes)
    with partial.open("ab") as file:
        file.truncate(done * row_bytes)
        for maps in compute(rows[done:]) if done < len(rows) else ():
            flat = [one.permute(0, 2, 3, 1).flatten(1).cpu().numpy().astype(NUMBER) for one in maps]
            file.write(np.concatenate(flat, axis=1).tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def missing_bytes(folder: Path, key: str, count: int, shapes: Shapes) -> int:
    """What is still to be written of the maps of so many images."""
    whole, path = bytes_of(count, shapes), folder / f"{key}.maps"
    return 0 if _size(path) == whole else max(0, whole - _size(path.with_suffix(".partial")))


def check_room(folder: Path, needed: int) -> None:
    """Refuse a disk that lacks room for so many bytes; the folder need not be there yet.

    Raises:
        MapsError: saying how much it lacks.
    """
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if needed > free:
        raise MapsError(
            f"backbone.frozen=true: the feature maps take {in_units(needed)} more, and {in_units(free)} are "
            f"free in '{folder}'. Free space there, choose another folder (data.cache_dir=<folder>), fewer "
            "taps (backbone.taps=[…]), or smaller images (data.image_size)."
        )


def in_units(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
