"""Decode every image before anything is trained on it: broken files, odd ones, and the same image twice."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.progress import Progress as ProgressBar

from unseen.data.images import Files, ImageError, PassingError, Pixels, opened
from unseen.data.inspect.duplicates import Rows, exact_duplicates, near_duplicates
from unseen.data.inspect.report import ERRORS, Report
from unseen.data.manifest import Manifest

THUMBNAIL = 16
"""Side of the small copies that near duplicates are compared by."""

Progress = Callable[[int], None]
"""Told the number of images that were inspected."""


class Inspected(NamedTuple):
    """What one image turned out to be; the fields after `problem` are empty if it has one."""

    problem: str | None
    mode: str = ""
    width: int = 0
    height: int = 0
    grey: bool = False
    digest: bytes = b""
    hash: int = 0
    thumbnail: NDArray[np.uint8] = np.zeros((THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)


def preflight(
    manifest: Manifest,
    *,
    images_per_class: int,
    aspect: float,
    distance: int,
    difference: float,
    workers: int | None,
    allow: Sequence[str],
    crop_to_box: bool = False,
    excluded: Sequence[str] = (),
    parts: NDArray[np.str_] | None = None,
    progress: Progress = lambda done: None,
) -> Report:
    """Decode every image and report what is wrong with the set.

    Args:
        manifest: the images.
        images_per_class: how many a training class should have for the sampler.
        aspect: longer over shorter side from which a shape is extreme.
        distance: most bits (of 64) in which hashes of near duplicates differ.
        difference: most by which their small copies differ, as a share of their contrast.
        workers: threads that decode; `None`: one for each core.
        allow: names out of `ERRORS` that are no error here.
        crop_to_box: whether training cuts images to their boxes.
        excluded: paths that were left out before, which the new list for `data.exclude` has to name again.
        parts: see `Report`.
        progress: is told how far it is.

    Raises:
        ValueError: `allow` has another name.
        PassingError: an image cannot be read, and not the image is the cause.
    """
    unknown = sorted(set(allow) - set(ERRORS))
    if unknown:
        raise ValueError(f"check.allow names '{unknown[0]}'. Choose from {', '.join(ERRORS)}.")
    inspected = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        inspect = partial(inspect_image, Files(manifest, crop_to_box=crop_to_box))
        for done, image in enumerate(pool.map(inspect, range(len(manifest))), start=1):
            inspected.append(image)
            progress(done)
    whole = np.array([row for row, image in enumerate(inspected) if image.problem is None], dtype=np.int64)
    unusual = {
        "extreme aspect": [row for row in whole if _aspect(inspected[row]) >= aspect],
        "grey": [row for row in whole if inspected[row].grey],
        "CMYK": [row for row in whole if inspected[row].mode == "CMYK"],
    }
    exact = exact_duplicates([inspected[row].digest for row in whole])
    near = near_duplicates(
        np.array([inspected[row].hash for row in whole], dtype=np.uint64),
        np.stack([inspected[row].thumbnail for row in whole])
        if whole.size
        else np.zeros((0, 1, 1, 3), np.uint8),
        distance,
        difference,
    )
    same = {frozenset(group) for group in exact}
    return Report(
        manifest=manifest,
        broken={row: image.problem for row, image in enumerate(inspected) if image.problem is not None},
        unusual={kind: tuple(map(int, rows)) for kind, rows in unusual.items()},
        exact=[_rows(whole, group) for group in exact],
        near=[_rows(whole, group) for group in near if frozenset(group) not in same],
        small_classes=small_classes(manifest, images_per_class),
        allow=tuple(allow),
        excluded=tuple(excluded),
        parts=parts,
    )


def watched_preflight(
    manifest: Manifest, options: Mapping[str, Any], console: Console, **more: Any
) -> Report:
    """`preflight` with the keys of `conf/check` and more arguments, under a progress bar."""
    columns = (*ProgressBar.get_default_columns(), MofNCompleteColumn())
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task("Inspecting images", total=len(manifest))
        return preflight(manifest, **options, **more, progress=lambda done: bar.update(task, completed=done))


def _rows(whole: NDArray[np.int64], group: Rows) -> Rows:
    return tuple(int(whole[position]) for position in group)


def inspect_image(images: Files, row: int) -> Inspected:
    """Decode one image as training would, and describe it.

    Raises:
        PassingError: it cannot be read, and not the image is the cause.
    """
    path = images.manifest.absolute(row)
    try:
        pixels = np.ascontiguousarray(images[row])  # an object is cut out of a larger picture
        with opened(path) as image:
            mode = image.mode
    except PassingError:
        raise
    except ImageError as error:
        return Inspected(_problem(path, error.__cause__ or error))
    return _describe(mode, pixels)


def _problem(path: Path, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    # Pillow's words for most formats: 'image file is truncated (n bytes not processed)'.
    kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
    return f"{kind}: {error}"


def _describe(mode: str, pixels: Pixels) -> Inspected:
    height, width = pixels.shape[:2]
    # The hash looks at 32 × 32 pixels; from a box-filtered copy it comes four times as fast.
    small = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX)
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return Inspected(
        problem=None,
        mode=mode,
        width=width,
        height=height,
        # JPEG brings channels apart by a level or two in an image that has no colour.
        grey=bool(np.ptp(thumbnail.astype(np.int16), axis=-1).max() <= 2),
        digest=f"{width}x{height}:".encode() + hashlib.sha1(pixels.data, usedforsecurity=False).digest(),
        hash=int(str(imagehash.phash(small)), 16),
        thumbnail=thumbnail,
    )


def _aspect(image: Inspected) -> float:
    return max(image.width, image.height) / min(image.width, image.height)


def small_classes(manifest: Manifest, images_per_class: int) -> dict[str, str]:
    """Classes that the sampler or the evaluation can make little of, and why."""
    train, test, query, gallery = (
        Counter(manifest.labels[manifest.roles == role].tolist())
        for role in ("train", "test", "query", "gallery")
    )
    found = {
        label: f"{count} to train on, {images_per_class} wanted in a batch"
        for label, count in sorted(train.items())
        if count < images_per_class
    }
    found |= {label: "one test image: it finds nothing" for label, count in sorted(test.items()) if count < 2}
    found |= dict.fromkeys(
        sorted(query.keys() - gallery.keys() - test.keys()), "no gallery image: its queries find nothing"
    )
    return {manifest.class_names[label]: why for label, why in found.items()}
