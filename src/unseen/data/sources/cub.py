"""CUB-200-2011 (Wah et al. 2011): 200 birds; the first 100 classes train, the last 100 test."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unseen.data.manifest import Manifest
from unseen.data.sources import layout


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `images.txt`, `image_class_labels.txt`, `classes.txt`, `bounding_boxes.txt` and `images/`.

    Args:
        root: folder of `CUB_200_2011`, or that folder itself.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing or broken, or the counts are not the published ones.
    """
    base = layout.find_base(root, "CUB_200_2011", "images.txt")
    path_of = dict(layout.read_fields(base / "images.txt", ("image", "path")))
    name_of = dict(layout.read_fields(base / "classes.txt", ("class", "name")))
    class_of = _by_image(base / "image_class_labels.txt", ("image", "class"), path_of)
    corners = _by_image(base / "bounding_boxes.txt", ("image", "x", "y", "width", "height"), path_of)
    with layout.reading(base / "bounding_boxes.txt"):
        box_of = {image: _box(corners[image]) for image in path_of}
    with layout.reading(base / "classes.txt", base / "image_class_labels.txt", base / "images.txt"):
        numbers = sorted(name_of, key=int)
        role_of = layout.first_half(numbers)
        images = sorted(path_of, key=int)
        manifest = layout.build(
            base / "images",
            [path_of[image] for image in images],
            [name_of[class_of[image][0]] for image in images],
            [role_of[class_of[image][0]] for image in images],
            [name_of[number] for number in numbers],
            boxes=np.stack([box_of[image] for image in images]),
        )
    return layout.expect(manifest, expected, "images.txt")


def _by_image(path: Path, names: tuple[str, ...], wanted: Mapping[str, str]) -> dict[str, list[str]]:
    table = {image: values for image, *values in layout.read_fields(path, names)}
    missing = wanted.keys() - table.keys()
    if missing:
        first = next(image for image in wanted if image in missing)
        raise layout.IncompleteData(
            f"'{path}' has no line for image {first} ({len(missing)} such): unpack it again."
        )
    return table


def _box(corner_and_size: list[str]) -> NDArray[np.int64]:
    """The pixels that a box touches; the file gives left, top, width and height as decimals."""
    left, top, width, height = map(float, corner_and_size)
    edges = (math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height))
    return np.maximum(np.array(edges, dtype=np.int64), 0)
