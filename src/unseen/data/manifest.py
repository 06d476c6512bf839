"""The table of images that everything downstream trusts: path, label, class name, role, box, super-class."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.files import replacing

ROLES = ("train", "query", "gallery", "test")
"""`train` is seen; `test` is query and gallery at once; `query` and `gallery` are for official pairs."""

SAVED = "# unseen manifest"
"""What the file of a manifest begins with."""

COLUMNS = ("path", "label", "class", "role", "left", "top", "right", "bottom", "super_class")


class ManifestError(ValueError):
    """A table of images that cannot be trusted; the message names the row, class or file and the remedy."""


@dataclass(frozen=True)
class Manifest:
    """`N` images of `C` classes.

    Args:
        root: folder that `paths` are relative to.
        paths: `N` POSIX paths relative to `root` (an absolute path stays absolute).
        labels: `(N,)` int64 in `0 … C-1`, positions in `class_names`.
        class_names: `C` distinct names.
        roles: `(N,)` strings out of `ROLES`.
        boxes: optional `(N, 4)` int64 pixels: left, top, right, bottom (right and bottom exclusive).
        super_classes: optional `N` names of super-classes.

    Raises:
        ManifestError: lengths differ, a label or role is unknown, a class name repeats or is no text, a class
            is both in training and in test, an image has two roles (also by another spelling of its path, or
            by a link), or the manifest is empty.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    roles: NDArray[np.str_]
    boxes: NDArray[np.int64] | None = None
    super_classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        labels = np.asarray(self.labels)
        if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():
            raise ManifestError("labels are not whole numbers. Wanted positions in class_names.")
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "roles", np.asarray(self.roles, dtype=np.str_))
        if self.boxes is not None:
            object.__setattr__(self, "boxes", np.asarray(self.boxes, dtype=np.int64))
        self._check_shapes()
        self._check_values()
        self._check_disjoint()

    def __len__(self) -> int:
        return len(self.paths)

    def _check_shapes(self) -> None:
        count = len(self.paths)
        if count == 0:
            raise ManifestError(f"No images found under '{self.root}'. Check the data root and its layout.")
        boxes = self.boxes if self.boxes is not None else np.zeros((count, 4))
        super_classes = self.super_classes if self.super_classes is not None else self.paths
        lengths = {
            "labels": len(self.labels),
            "roles": len(self.roles),
            "boxes": len(boxes),
            "super_classes": len(super_classes),
        }
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise ManifestError(
                f"The manifest has {count} paths but {wrong}: every column needs one entry a row."
            )
        if boxes.shape != (count, 4):
            raise ManifestError(f"boxes has shape {boxes.shape}, wanted ({count}, 4).")

    def _check_values(self) -> None:
        unknown = sorted(set(self.roles.tolist()) - set(ROLES))
        if unknown:
            raise ManifestError(f"Unknown role {unknown[0]!r}. Choose from {', '.join(ROLES)}.")
        if len(set(self.class_names)) != len(self.class_names):
            seen: set[str] = set()
            repeated = next(name for name in self.class_names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ManifestError(f"Class name '{repeated}' stands twice. Class names must be distinct.")
        strange = next((name for name in self.class_names if not _is_text(name)), None)
        if strange is not None:  # as escapes: its bytes cannot be printed
            raise ManifestError(
                f"Class name {strange!a} is not UTF-8 text. Rename its folder, or save its table as UTF-8."
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise ManifestError(
                f"Labels run from {self.labels.min()} to {self.labels.max()}, "
                f"but there are {len(self.class_names)} class names (0 … {len(self.class_names) - 1})."
            )

    def _check_disjoint(self) -> None:
        is_train = self.roles == "train"
        both = np.intersect1d(self.labels[is_train], self.labels[~is_train])
        if both.size == 0:
            self._check_images_disjoint()
            return
        label = int(both[0])
        train, test = (int((self.labels[rows] == label).sum()) for rows in (is_train, ~is_train))
        more = f" ({both.size - 1} more such classes)" if both.size > 1 else ""
        raise ManifestError(
            f"Class '{self.class_names[label]}' is in train and test ({train} and {test} images){more}. "
            "Splits must be class-disjoint: rename it, or choose the split by classes."
        )

    def _check_images_disjoint(self) -> None:
        """By its boxes a picture may give objects to training and to test; the same object would leak, and a
        query that is in the gallery would find itself."""
        if len(set(self.roles.tolist())) < 2:
            return
        boxes = [None] * len(self) if self.boxes is None else map(tuple, self.boxes.tolist())
        first: dict[Any, int] = {}
        places = zip(real_places(self.root, self.paths), boxes, strict=True)
        pairs = [(first.setdefault(place, row), row) for row, place in enumerate(places)]
        both = [pair for pair in pairs if self.roles[pair[0]] != self.roles[pair[1]]]
        if both:
            one, other = sorted(both[0], key=lambda row: ROLES.index(self.roles[row]))
            more = f" ({len(both) - 1} more such images)" if len(both) > 1 else ""
            raise ManifestError(
                f"Image {aliases(self.paths[one], self.paths[other])} is in {self.roles[one]} and "
                f"{self.roles[other]}{more}. Remove one of its rows, or give each row the box of its own "
                "object."
            )

    def absolute(self, row: int) -> Path:
        """Path of one image."""
        return self.root / self.paths[row]

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_] | Sequence[int]) -> Manifest:
        """The manifest of some rows, in that order, or of those of a mask `(N,)`; labels and class names stay
        what they are."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=self.labels[rows],
            roles=self.roles[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            super_classes=None
            if self.super_classes is None
            else tuple(self.super_classes[row] for row in rows),
        )

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the rows; independent of `root`, so it is the same on another machine."""
        digest = hashlib.sha256()
        for row in self._rows():
            digest.update("\x1f".join(row).encode("utf-8", "surrogateescape") + b"\x1e")
        return digest.hexdigest()

    def _rows(self) -> Iterable[tuple[str, ...]]:
        for row, path in enumerate(self.paths):
            label = int(self.labels[row])
            box = ("",) * 4 if self.boxes is None else tuple(str(int(edge)) for edge in self.boxes[row])
            super_class = "" if self.super_classes is None else self.super_classes[row]
            yield (path, str(label), self.class_names[label], str(self.roles[row]), *box, super_class)

    def save(self, path: Path) -> None:
        """Write a readable CSV, atomically. Its first line holds the root and the content hash."""
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            file.write(f"{SAVED}; sha256={self.content_hash}; root={self.root}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(self._rows())

    @staticmethod
    def load(path: Path, root: Path | None = None) -> Manifest:
        """Read what `save` wrote; `root` replaces the stored root (the same data on another machine).

        Raises:
            ManifestError: the file is not a manifest, a row is broken, or the content hash does not fit.
        """
        path = Path(path)
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header = file.readline().rstrip("\r\n")  # tools that change line ends leave the rows readable
            fields = dict(part.split("=", 1) for part in header.split("; ", 2)[1:] if "=" in part)
            if not header.startswith(SAVED) or not {"sha256", "root"} <= fields.keys():
                raise ManifestError(f"'{path}' is not a manifest: its first line is {header[:60]!r}.")
            rows = list(csv.DictReader(file))
        try:
            manifest = _from_rows(rows, Path(root) if root is not None else Path(fields["root"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"'{path}' has a broken row or column: {error}") from error
        if manifest.content_hash != fields["sha256"]:
            raise ManifestError(
                f"'{path}' was changed by hand: its rows do not fit the content hash in its first line. "
                "Read an edited table with data=csv instead."
            )
        return manifest


def real_places(root: Path, paths: Iterable[str]) -> list[str]:
    """Where files lie in truth: the same for every spelling of a path and every link to it."""
    real = functools.cache(os.path.realpath)
    links = functools.cache(_links)
    places = []
    for path in paths:
        folder, name = os.path.split(os.path.join(root, path))
        place = os.path.join(real(folder), name)
        places.append(os.path.realpath(place) if name in links(folder) else place)
    return places


def aliases(*paths: str) -> str:
    """The paths of one file, in words."""
    return " alias ".join(f"'{path}'" for path in dict.fromkeys(paths))


def _links(folder: str) -> set[str]:
    """Listed at once: to ask for each file takes twice as long, to resolve each ten times."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # there is no such folder, as for images in memory
        return set()


def _from_rows(rows: list[dict[str, Any]], root: Path) -> Manifest:
    labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    # Labels without images (classes that were filtered out) keep their place under a name of their own.
    names = {label: f"(no images: {label})" for label in range(int(labels.max(initial=-1)) + 1)}
    names |= {int(row["label"]): row["class"] for row in rows}
    has_boxes = any(row["left"] for row in rows)
    has_super_classes = any(row["super_class"] for row in rows)
    return Manifest(
        root=root,
        paths=tuple(row["path"] for row in rows),
        labels=labels,
        class_names=tuple(names[label] for label in sorted(names)),
        roles=np.array([row["role"] for row in rows], dtype=np.str_),
        boxes=np.array([[int(row[edge]) for edge in COLUMNS[4:8]] for row in rows]) if has_boxes else None,
        super_classes=tuple(row["super_class"] for row in rows) if has_super_classes else None,
    )


def _is_text(name: str) -> bool:
    """Not so for the bytes of a file name in another encoding, which no record could hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
