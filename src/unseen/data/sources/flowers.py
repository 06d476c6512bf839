"""Oxford Flowers-102 (Nilsback and Zisserman 2008): the first 51 classes train, the last 51 test."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from unseen.data.manifest import Manifest
from unseen.data.sources import layout


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `imagelabels.mat` (the label of image 1, 2, …, counted from 1) and `jpg/image_00001.jpg` onwards.

    Args:
        root: folder of those (torchvision's `flowers-102` is one), or the one above.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing, or the counts are not the published ones.
    """
    base = layout.find_base(root, "flowers-102", "imagelabels.mat")
    lists = base / "imagelabels.mat"
    table = layout.read_mat(lists)
    with layout.reading(lists):
        labels = np.atleast_1d(table["labels"]).astype(int).tolist()
        names = [f"{label:03d}" for label in range(1, max(labels) + 1)]
        role_of = layout.first_half(names)
        classes = [layout.numbered(names, label) for label in labels]
        paths = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        manifest = layout.build(base, paths, classes, [role_of[name] for name in classes], names)
    return layout.expect(manifest, expected, "imagelabels.mat")
