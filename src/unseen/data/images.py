"""Files → RGB pixels: any mode that Pillow reads, upright, optionally cropped to its box."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from unseen.data.manifest import Manifest

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")


class ImageError(ValueError):
    """A file that is no image; the message names it and the remedy."""


class PassingError(ImageError):
    """An image that cannot be read here and now, which says nothing about the file: it is never skipped."""


MOST_TIMES = 200
"""Longer to shorter side: a strip that is resized by its shorter side fills the memory."""

TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""

OF_THE_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EINVAL, errno.EOVERFLOW),  # a broken file that sends its decoder to no place
}
"""System errors that are the same whenever the file is read; decoders' own errors have no number."""


def read_image(path: Path, box: NDArray[np.int64] | None = None) -> Pixels:
    """One image as RGB.

    Transparent pixels lie on white; 16-bit values keep their high byte; floating-point values up to 1 are
    shares of white; an animation gives its first frame; EXIF orientation is applied.

    Args:
        path: file.
        box: optional left, top, right, bottom, in pixels of the upright image; clipped to it.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        ImageError: missing, empty, truncated, of no known format, a strip, or its box is empty.
        PassingError: memory or files that may be open run out, the disk fails, or reading is not permitted.
    """
    with opened(path) as image:
        # A copy, as torch warns of read-only arrays.
        pixels = np.array(to_rgb(upright(image)))
        return require_shape(pixels if box is None else _crop(pixels, box, path))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file; what goes wrong while it is open becomes one of the errors of `read_image`."""
    try:
        with Image.open(path) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: Exception) -> ImageError:
    """What is said of an image that could not be read: a `PassingError` where the machine is the cause."""
    if passes(error):
        return PassingError(
            f"Image '{path}' cannot be read now ({type(error).__name__}: {error}). The cause is this "
            "machine, not the image: look at its memory, its disk, the file's permissions and the number "
            "of files that may be open (ulimit -n; data.workers)."
        )
    return ImageError(
        f"Image '{path}' cannot be read ({type(error).__name__}: {error}). "
        "Replace or remove it, or set data.on_error=skip."
    )


def passes(error: Exception) -> bool:
    """Whether an error says nothing about the file that was read."""
    if isinstance(error, MemoryError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in OF_THE_FILE


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; `ImageOps.exif_transpose` fails if any other tag is wrong."""
    image.load()  # which turns a TIFF already
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; see `read_image`."""
    is_transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        white = values == image.info.get("transparency")
        image = Image.fromarray(np.where(white, 255, values >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image, dtype=np.float64)))
    elif is_transparent:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        image = Image.alpha_composite(white, coloured)
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.float64]) -> Pixels:
    """32-bit grey does not say how bright white is: 1, 8 bits and 16 bits are told apart by the maximum."""
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    brightest = values.max(initial=0)
    scale = 255.0 if brightest <= 1 else 1.0 if brightest <= 255 else 1 / 256
    return (values * scale).clip(0, 255).astype(np.uint8)


def require_shape(pixels: Pixels) -> Pixels:
    """An image `(H, W, 3)`, if it is no strip.

    Raises:
        ValueError: it has no pixel, or a side is more than `MOST_TIMES` times the other.
    """
    height, width = pixels.shape[:2]
    if height * width == 0 or max(height, width) > MOST_TIMES * min(height, width):
        raise ValueError(f"it has {width}×{height} pixels; a side may be {MOST_TIMES} times the other")
    return pixels


def cut(pixels: Pixels, box: Iterable[int]) -> Pixels:
    """What lies between left, top, right and bottom (the last two exclusive), clipped to the image."""
    left, top, right, bottom = (max(0, int(edge)) for edge in box)
    return pixels[top:bottom, left:right]


def _crop(pixels: Pixels, box: NDArray[np.int64], path: Path) -> Pixels:
    cropped = cut(pixels, box)
    if cropped.size == 0:
        raise ImageError(
            f"Image '{path}' has the box {tuple(map(int, box))}, which holds none of its "
            f"{pixels.shape[1]}×{pixels.shape[0]} pixels. Correct the box, or set data.on_error=skip."
        )
    return cropped


class Images(Protocol):
    """Whatever gives the pixels of a row."""

    @property
    def problems(self) -> dict[int, str]:
        """Rows that were found to be unreadable, and why."""

    def __len__(self) -> int:
        """Rows, those that are unreadable included."""

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8."""


class Files:
    """Images decoded from their files each time.

    Args:
        manifest: names the files and boxes.
        crop_to_box: cut images to the boxes.
    """

    def __init__(self, manifest: Manifest, *, crop_to_box: bool = True) -> None:
        self.manifest = manifest
        self.boxes = manifest.boxes if crop_to_box else None
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8."""
        return read_image(self.manifest.absolute(row), None if self.boxes is None else self.boxes[row])


def attempt(images: Images, row: int) -> Pixels | ImageError:
    """An image, or why it cannot be read.

    Raises:
        PassingError: not the image is the cause.
    """
    try:
        return images[row]
    except PassingError:
        raise
    except ImageError as error:
        return error


def in_order(
    work: Callable[[int], Result], rows: Iterable[int], threads: int | None = None
) -> Iterator[Result]:
    """Results of `work` in the order of `rows`, from several threads, few of them in memory at a time.

    Threads suffice, by default one a core: Pillow decodes and resizes without holding the interpreter.
    """
    threads = threads or available_cores()
    remaining = iter(rows)
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(work, row) for row in islice(remaining, 4 * threads)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(work, row) for row in islice(remaining, 1)]


def available_cores() -> int:
    """Cores that this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
