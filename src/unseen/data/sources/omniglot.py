"""Omniglot (Lake et al. 2015): characters of 30 alphabets train, those of 20 other alphabets test."""

from __future__ import annotations

import os
from collections.abc import Mapping

from unseen.data.manifest import Manifest
from unseen.data.sources import layout

ROLE_OF_FOLDER = {"images_background": "train", "images_evaluation": "test"}


def read(root: str | os.PathLike[str], *, expected: Mapping[str, int] | None) -> Manifest:
    """Read `images_background/<alphabet>/<character>/*.png` and `images_evaluation/…`: one class a character.

    Args:
        root: folder of the two, or the one above.
        expected: published counts, see `layout.expect`.

    Raises:
        IncompleteData: a folder is missing, a character has no image, or the counts are not the published
            ones.
    """
    base = layout.find_base(root, "omniglot-py", "images_background")
    rows = []
    for folder, role in ROLE_OF_FOLDER.items():
        for alphabet in layout.subfolders(layout.require_folder(base / folder)):
            for character in layout.subfolders(alphabet):
                images = layout.find_images(character, base)
                if not images:
                    raise layout.IncompleteData(f"'{character}' has no image: unpack {folder}.zip again.")
                rows += [(path, f"{alphabet.name}/{character.name}", role, alphabet.name) for path in images]
    paths, classes, roles, alphabets = zip(*rows, strict=True) if rows else ((), (), (), ())
    with layout.reading(base):
        manifest = layout.build(
            base, paths, classes, roles, list(dict.fromkeys(classes)), super_classes=alphabets
        )
    return layout.expect(manifest, expected, " and ".join(ROLE_OF_FOLDER))
