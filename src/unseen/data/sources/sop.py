"""Stanford Online Products (Oh Song et al. 2016): 11,318 products train, 11,316 others test, of 12 kinds."""

from __future__ import annotations

import os
from collections.abc import Mapping

from unseen.data.manifest import Manifest
from unseen.data.sources import layout


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `Ebay_train.txt`, `Ebay_test.txt` and one folder for each kind of product.

    Args:
        root: folder of `Stanford_Online_Products`, or that folder itself.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing or broken, or the counts are not the published ones.
    """
    base = layout.find_base(root, "Stanford_Online_Products", "Ebay_train.txt")
    columns = ("image_id", "class_id", "super_class_id", "path")
    rows = [
        (path, product, role)
        for role in ("train", "test")
        for _, product, _, path in layout.read_fields(base / f"Ebay_{role}.txt", columns, skip=1)
    ]
    paths, products, roles = (list(column) for column in zip(*rows, strict=True))
    with layout.reading(base / "Ebay_train.txt", base / "Ebay_test.txt"):
        manifest = layout.build(
            base,
            paths,
            products,
            roles,
            sorted(set(products), key=int),
            super_classes=[path.split("/")[0].removesuffix("_final") for path in paths],
        )
    return layout.expect(manifest, expected, "Ebay_train.txt and Ebay_test.txt")
