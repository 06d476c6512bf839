"""In-Shop Clothes Retrieval of DeepFashion (Liu et al. 2016), with its official query and gallery."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unseen.data.manifest import Manifest
from unseen.data.sources import layout


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `Eval/list_eval_partition.txt`, `Anno/list_bbox_inshop.txt` and `img/` (also under `Img/`).

    Args:
        root: folder of those, or the one above.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing or broken, or the counts are not the published ones.
    """
    base = layout.find_base(root, "In-shop Clothes Retrieval Benchmark", "Eval/list_eval_partition.txt")
    partition = base / "Eval" / "list_eval_partition.txt"
    # Two lines of head: the number of images, and the names of the columns.
    rows = layout.read_fields(partition, ("image_name", "item_id", "evaluation_status"), skip=2)
    paths, items, roles = (list(column) for column in zip(*rows, strict=True))
    images = next((folder for folder in (base / "Img", base) if (folder / "img").is_dir()), base)
    boxes = _boxes(base / "Anno" / "list_bbox_inshop.txt", paths)
    super_classes = ["/".join(path.split("/")[1:3]) for path in paths]
    with layout.reading(partition):
        manifest = layout.build(
            images, paths, items, roles, sorted(set(items)), boxes=boxes, super_classes=super_classes
        )
    return layout.expect(manifest, expected, "Eval/list_eval_partition.txt")


def _boxes(path: Path, images: list[str]) -> NDArray[np.int64]:
    columns = ("image_name", "clothes_type", "pose_type", "x_1", "y_1", "x_2", "y_2")
    box_of = {row[0]: row[3:] for row in layout.read_fields(path, columns, skip=2)}
    missing = [image for image in images if image not in box_of]
    if missing:
        raise layout.IncompleteData(
            f"'{path}' has no box for '{missing[0]}' ({len(missing):,} such): unpack it again."
        )
    with layout.reading(path):
        return np.array([box_of[image] for image in images]).astype(np.int64)
