"""Oxford-IIIT Pets (Parkhi et al. 2012): 37 breeds; the first 19 classes train, the last 18 test.

Of the 7,390 photographs in `images/`, the 7,349 that the annotation lists name are used, as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from unseen.data.manifest import Manifest
from unseen.data.sources import layout

SPECIES = {"1": "cat", "2": "dog"}


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `annotations/list.txt` (image, class from 1, species, breed) and `images/`.

    Args:
        root: folder of those (torchvision's `oxford-iiit-pet` is one), or the one above.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a file is missing or broken, or the counts are not the published ones.
    """
    base = layout.find_base(root, "oxford-iiit-pet", "annotations/list.txt")
    lists = base / "annotations" / "list.txt"
    rows = layout.read_fields(lists, ("image", "class", "species", "breed"))
    # 'american_bulldog_100' is image 100 of the breed 'american_bulldog'.
    name_of = {number: image.rpartition("_")[0] for image, number, _, _ in rows}
    with layout.reading(lists):
        numbers = sorted(name_of, key=int)
        role_of = layout.first_half(numbers)
        manifest = layout.build(
            base,
            [f"images/{image}.jpg" for image, *_ in rows],
            [name_of[number] for _, number, *_ in rows],
            [role_of[number] for _, number, *_ in rows],
            [name_of[number] for number in numbers],
            super_classes=[SPECIES.get(species, species) for _, _, species, _ in rows],
        )
    return layout.expect(manifest, expected, "annotations/list.txt")
