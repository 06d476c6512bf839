"""A tree with one folder for each class: `root/<class>/…/<image>`, or `root/{train,test}/<class>/…`."""

from __future__ import annotations

import os
from pathlib import Path

from unseen.data.manifest import ROLES, Manifest, ManifestError
from unseen.data.sources import layout

PARTS = {*ROLES, "training", "val", "valid", "validation", "testing"}
"""Folders that divide a tree, under our names and those that others use."""


def read(
    root: str | os.PathLike[str], *, split: str | None, train_fraction: float, seed: int, listed: str
) -> Manifest:
    """Read a class-per-folder tree; classes are in the order of their names.

    Args:
        root: folder of class folders.
        split: `order`, `fraction` or the path of a list of class names (see `layout.divide_classes`), or
            `folders`: the tree is already divided, `root/train/<class>` and `root/test/<class>` (or `query`
            and `gallery`). `None`: `folders` where it is, else `order`.
        train_fraction: share of the classes that train, for `order` and `fraction`.
        seed: of the draw, for `fraction`.
        listed: whether a list names the `test` or the `train` classes.

    Raises:
        ManifestError: the root is missing, a class folder has no image, two have the same name in
            different spellings or are one by a link, a class trains and tests, or the split cannot be made.
    """
    base = layout.require_folder(root)
    folders = layout.subfolders(base)
    if not folders:
        raise ManifestError(
            f"data.root='{base}' has no sub-folders. Wanted one folder of images for each class."
        )
    divided = len(folders) > 1 and {folder.name.lower() for folder in folders} <= PARTS
    if split == "folders" or (split is None and divided):
        return _read_divided(base, folders)
    if divided:
        raise ManifestError(
            f"data.root='{base}' holds the folders {', '.join(folder.name for folder in folders)}: "
            "is it already divided? Then set data.split=folders."
        )
    _require_distinct(folders)
    images = {layout.normal(folder.name): _class_images(folder, base) for folder in folders}
    names = sorted(images)
    chosen = layout.divide_classes(names, split or "order", train_fraction, seed, listed, base)
    roles = dict(zip(names, chosen, strict=True))
    rows = [(path, name, roles[name]) for name in names for path in images[name]]
    return _build(base, rows)


def _read_divided(base: Path, folders: list[Path]) -> Manifest:
    strange = [folder.name for folder in folders if folder.name not in ROLES]
    if strange:
        raise ManifestError(
            f"data.split=folders found '{strange[0]}' in '{base}'. Wanted only {', '.join(ROLES)}: "
            "rename it, or move it elsewhere."
        )
    rows = []
    for role in folders:
        classes = layout.subfolders(role)
        _require_distinct(classes)
        rows += [
            (path, layout.normal(folder.name), role.name)
            for folder in classes
            for path in _class_images(folder, base)
        ]
    return _build(base, rows)


def _require_distinct(folders: list[Path]) -> None:
    spelt: dict[str, Path] = {}
    placed: dict[str, Path] = {}
    for folder in folders:
        other = spelt.setdefault(layout.normal(folder.name), folder)
        if other != folder:
            # As escapes: printed, they would look the same.
            raise ManifestError(
                f"Class folders {other.name!a} and {folder.name!a} in '{folder.parent}' differ only in how "
                "an accented letter is composed. Move their images into one, or rename one."
            )
        other = placed.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            raise ManifestError(
                f"Class folders '{other.name}' and '{folder.name}' in '{folder.parent}' are one folder by a "
                "link: an image has one class. Remove the link."
            )


def _class_images(folder: Path, base: Path) -> list[str]:
    images = layout.find_images(folder, base)
    if not images:
        raise ManifestError(
            f"Class folder '{folder}' has no image ({', '.join(sorted(layout.IMAGE_SUFFIXES))}). "
            "Remove the folder or fill it."
        )
    return images


def _build(base: Path, rows: list[tuple[str, str, str]]) -> Manifest:
    paths, classes, roles = zip(*rows, strict=True) if rows else ((), (), ())
    return layout.build(base, paths, classes, roles, sorted(set(classes)))
