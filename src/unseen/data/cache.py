"""Decoded images, kept: in memory for one run, or in one memory-mapped file that all runs and workers share.

The file holds the pixels one after another, then an index `(N, 3)` int64 (offset, height, width), then a JSON
description, the length of that, and eight bytes that only a complete file ends with.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from unseen.data.images import Files, ImageError, Images, Pixels, attempt, in_order
from unseen.data.manifest import Manifest
from unseen.files import exclusive_lock, replacing

log = logging.getLogger(__name__)

VERSION = 3
"""Raise it with every change of the file's layout or of the pixels in it: older files are then made anew."""
END = b"unseen\r\n"
"""Last bytes of a complete file."""
LONG = 2000
"""From this many images on, decoding shows a progress bar."""


SAMPLE = 100
"""After this many images it is known what all of them take."""


class CacheError(ValueError):
    """Decoded images that cannot be kept, or a file of them that cannot be used; the message says why."""


class InMemory:
    """Images in memory. Worker processes that are forked share it.

    Args:
        images: row → `(H, W, 3)` uint8.
        problems: row → why it cannot be read.
    """

    def __init__(self, images: dict[int, Pixels], problems: dict[int, str]) -> None:
        self.images = images
        self.problems = problems

    def __len__(self) -> int:
        return len(self.images) + len(self.problems)

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8."""
        return self.images[row]


class Selected:
    """Some of other images, all readable.

    Args:
        images: the others.
        rows: `(N,)` their rows.
    """

    def __init__(self, images: Images, rows: NDArray[np.int64]) -> None:
        self.images = images
        self.rows = rows
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8."""
        return self.images[int(self.rows[row])]


class MemoryMapped:
    """Images in a file; pages are read when they are touched, and shared by all processes.

    Args:
        path: a file that `memory_mapped` made.

    Raises:
        CacheError: the file is not complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Opened once, so that pixels and index are of one file even if another run replaces it meanwhile.
        # For reading only: Linux counts a private writable mapping as memory and refuses a large one.
        self._bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        self.description, self.index = _read_end(self._bytes)
        self.problems = {int(row): text for row, text in self.description["problems"].items()}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8; changes to it do not reach the file."""
        offset, height, width = self.index[row]
        # A copy, as torch warns of arrays that cannot be written.
        return self._bytes[offset : offset + 3 * height * width].reshape(height, width, 3).copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryMapped, (self.path,)  # another process opens it for itself


def uncached(images: Images, *, short_side: int, keep_going: bool, folder: Path) -> Images:
    """Images decoded each time; see `memory_mapped` for the arguments.

    With `keep_going` all are decoded once beforehand, to find those that cannot be.

    Raises:
        ImageError: none can be read.
    """
    if keep_going:
        for row, image in enumerate(_decode(images, short_side, keep_going)):
            if isinstance(image, ImageError):
                images.problems[row] = str(image)
    return images


def in_memory(images: Images, *, short_side: int, keep_going: bool, folder: Path) -> InMemory:
    """Images decoded now, for this run; see `memory_mapped` for the arguments.

    Raises:
        ImageError: an image cannot be read, and `keep_going` is false; or none can.
        CacheError: going by the first images, all will not fit into memory.
    """
    kept: dict[int, Pixels] = {}
    problems: dict[int, str] = {}
    available = psutil.virtual_memory().available
    for row, image in enumerate(_decode(images, short_side, keep_going)):
        if isinstance(image, ImageError):
            problems[row] = str(image)
        else:
            kept[row] = image
        if row + 1 == SAMPLE:
            _check_fits(kept, SAMPLE, len(images), available)
    return InMemory(kept, problems)


def _check_fits(kept: dict[int, Pixels], seen: int, count: int, available: int) -> None:
    """Before the system ends the run, which it does without a word."""
    needed = sum(image.nbytes for image in kept.values()) * count // seen
    if needed > available:
        raise CacheError(
            f"data.cache=ram: {count:,} decoded images take about {needed / 2**30:.1f} GiB, and "
            f"{available / 2**30:.1f} GiB are free. Set data.cache=memmap, or a smaller data.cache_size."
        )


def memory_mapped(images: Files, *, short_side: int, keep_going: bool, folder: Path) -> MemoryMapped:
    """The file of these images, made first if it is not there, or is incomplete, old, or of changed images.

    Of several processes that need it at once, one makes it and the others wait.

    Args:
        images: what to decode.
        short_side: larger images are resized so that their shorter side has this many pixels.
        keep_going: note images that cannot be read in `problems`, instead of raising.
        folder: where such files lie.

    Raises:
        ImageError: an image cannot be read, and `keep_going` is false; or none can.
        OSError: the folder cannot be written, or the disk is full.
    """
    path = folder / f"{_key(images, short_side)}.pixels"
    wanted = {"version": VERSION, "sources": sources(images.manifest)}
    with suppress(CacheError):  # before locking: a finished cache may lie in a folder that is read-only
        return _fitting(path, wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        waiting = "Another process is decoding these images: waiting for it (%s)."
        with exclusive_lock(lock, lambda: log.info(waiting, lock)):
            try:
                return _fitting(path, wanted)  # another process may have made it meanwhile
            except CacheError as error:
                log.info("%s Decoding %s images, once.", error, f"{len(images):,}")
                return _make(path, wanted, images, short_side, keep_going)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: decoded images cannot be kept in data.cache_dir. Free space there, choose "
            "another folder, or set data.cache=none",
            str(folder),
        ) from error


def _fitting(path: Path, wanted: dict[str, Any]) -> MemoryMapped:
    if not path.exists():
        raise CacheError(f"There is no cache '{path}' yet.")
    try:
        found = MemoryMapped(path)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"The cache '{path}' is broken: {error}.") from error
    if found.description["version"] != wanted["version"]:
        raise CacheError(f"The cache '{path}' was made by another version.")
    if found.description["sources"] != wanted["sources"]:
        raise CacheError(f"The cache '{path}' is stale: image files have changed since.")
    return found


def _make(
    path: Path, wanted: dict[str, Any], images: Files, short_side: int, keep_going: bool
) -> MemoryMapped:
    for leftover in path.parent.glob(f".{path.stem}.*"):
        leftover.unlink()  # of a process that was killed: nobody else holds the lock
    index = np.zeros((len(images), 3), dtype="<i8")
    problems: dict[int, str] = {}
    offset = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for row, image in enumerate(_decode(images, short_side, keep_going)):
            if isinstance(image, ImageError):
                problems[row] = str(image)
                continue
            index[row] = offset, *image.shape[:2]
            offset += file.write(image.data)
        description = json.dumps(wanted | {"count": len(images), "problems": problems}).encode()
        file.write(index.tobytes() + description + len(description).to_bytes(8, "little") + END)
        file.flush()
        os.fsync(file.fileno())
    return MemoryMapped(path)


def _read_end(content: Pixels) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Description and index; every length has to fit, or the file was cut or written by something else."""
    end = len(content) - 16
    length = int.from_bytes(content[end : end + 8].tobytes(), "little")
    if end < 0 or content[end + 8 :].tobytes() != END or length > end:
        raise CacheError("it is truncated, or something else")
    description = json.loads(content[end - length : end].tobytes())
    start = end - length - 24 * description["count"]
    index = np.frombuffer(content[max(0, start) : end - length].tobytes(), dtype="<i8").reshape(-1, 3)
    if 3 * int((index[:, 1] * index[:, 2]).sum()) != start:
        raise CacheError(f"its index does not expect {start:,} bytes of pixels")
    return description, index


def _decode(images: Images, short_side: int, keep_going: bool) -> Iterator[Pixels | ImageError]:
    def decode(row: int) -> Pixels | ImageError:
        image = attempt(images, row)
        return image if isinstance(image, ImageError) else shrink(image, short_side)

    count = len(images)
    decoded = track(in_order(decode, range(count)), "Decoding images", total=count, disable=count < LONG)
    problems = 0
    for image in decoded:
        if isinstance(image, ImageError):
            problems += 1
            if not keep_going:
                raise image
            if problems == count:
                raise ImageError(f"None of the {count} images can be read. The last: {image}")
        yield image


def shrink(image: Pixels, short_side: int) -> Pixels:
    """Resize so that the shorter side has at most this many pixels, by Pillow's antialiased bilinear filter.

    Args:
        image: `(H, W, 3)` uint8.
        short_side: pixels; smaller images stay what they are.

    Returns:
        `(h, w, 3)` uint8, contiguous.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return np.ascontiguousarray(image)
    # Cut off as torchvision's Resize does, so that a cached image is what evaluation would have made of it.
    size = (width * short_side // short, height * short_side // short)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _key(images: Files, short_side: int) -> str:
    """Names what determines the pixels; labels and roles do not, so other splits share the file."""
    manifest = images.manifest
    digest = hashlib.sha256(f"{manifest.root.resolve()}|{short_side}".encode("utf-8", "surrogateescape"))
    digest.update("\0".join(manifest.paths).encode("utf-8", "surrogateescape"))
    if images.boxes is not None:
        digest.update(images.boxes.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def sources(manifest: Manifest) -> str:
    """Changes when a file does: SHA-256 (hex) over sizes and times of change."""
    digest = hashlib.sha256()
    for row in range(len(manifest)):
        try:
            status = manifest.absolute(row).stat()
            # A file that takes another's place keeps its own time of writing, which may be the same.
            digest.update(f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns};".encode())
        except OSError:
            digest.update(b"missing;")
    return digest.hexdigest()


OPEN: dict[str, Callable[..., Images]] = {"none": uncached, "ram": in_memory, "memmap": memory_mapped}
"""Choices of `data.cache`."""
