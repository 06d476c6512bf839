"""Cars-196 (Krause et al. 2013): 196 models of cars; the first 98 classes train, the last 98 test.

The official division into train and test images is for classification and plays no part here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unseen.data.manifest import Manifest
from unseen.data.sources import layout

FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read either form of the distribution.

    One is `cars_annos.mat` and `car_ims/`; the other `devkit/` (`cars_meta.mat`, `cars_train_annos.mat`),
    `cars_test_annos_withlabels.mat`, `cars_train/` and `cars_test/`.

    Args:
        root: folder of those files, or the one above.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing, or the counts are not the published ones.
    """
    together = any(
        (Path(root).expanduser() / inner / "cars_annos.mat").is_file() for inner in ("", "cars196")
    )
    read_form = _read_together if together else _read_devkit
    base, lists, names, rows = read_form(root)
    with layout.reading(*(base / name for name in lists)):
        role_of = layout.first_half(names)
        corners = np.array([row[1:5] for row in rows], dtype=np.int64).reshape(-1, 4)
        # MATLAB counts pixels from 1 and includes the last one.
        boxes = corners - np.array([1, 1, 0, 0])
        classes = [layout.numbered(names, row[5]) for row in rows]
        manifest = layout.build(
            base, [row[0] for row in rows], classes, [role_of[name] for name in classes], names, boxes=boxes
        )
    return layout.expect(manifest, expected, " and ".join(lists))


Form = tuple[Path, list[str], list[str], list[tuple[Any, ...]]]


def _read_together(root: str | os.PathLike[str]) -> Form:
    base = layout.find_base(root, "cars196", "cars_annos.mat")
    lists = base / "cars_annos.mat"
    return base, [lists.name], _names(lists), _rows(lists, "relative_im_path", "")


def _read_devkit(root: str | os.PathLike[str]) -> Form:
    base = layout.find_base(root, "stanford_cars", "devkit/cars_meta.mat")
    train, labelled = "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"
    test = f"devkit/{labelled}" if (base / "devkit" / labelled).is_file() else labelled
    rows = _rows(base / train, "fname", "cars_train/") + _rows(base / test, "fname", "cars_test/")
    return base, [train, test], _names(base / "devkit" / "cars_meta.mat"), rows


def _names(lists: Path) -> list[str]:
    table = layout.read_mat(lists)
    with layout.reading(lists):
        return [str(name).strip() for name in np.atleast_1d(table["class_names"])]


def _rows(lists: Path, path_field: str, folder: str) -> list[tuple[Any, ...]]:
    table = layout.read_mat(lists)
    with layout.reading(lists):
        return [
            (f"{folder}{row[path_field]}", *(int(row[field]) for field in FIELDS))
            for row in np.atleast_1d(table["annotations"])
        ]
