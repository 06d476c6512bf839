"""A CSV with one image a row: `path`, `label`, and optionally `role`, a box and a super-class."""

from __future__ import annotations

import codecs
import csv
import os
from pathlib import Path

import numpy as np

from unseen.data.manifest import COLUMNS, ROLES, Manifest, ManifestError, aliases, real_places
from unseen.data.sources import layout

Row = dict[str, str]
BOX = ("left", "top", "right", "bottom")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None,
    split: str | None,
    train_fraction: float,
    seed: int,
    listed: str,
) -> Manifest:
    """Read a table; a saved manifest that was edited by hand is one too.

    Columns: `path` (relative to `root`), `label` (any text; whole numbers are ordered as numbers),
    optionally `class` (the name, where `label` is a number), `role` (train, query, gallery, test), `left`,
    `top`, `right`, `bottom` (pixels, right and bottom exclusive) and `super_class`.

    Args:
        path: the CSV (UTF-8).
        root: folder that its paths start from; `None` is the folder of the CSV.
        split: `None` takes the `role` column, or divides by `order` where there is none; else as in a folder.
        train_fraction: share of the classes that train, for `order` and `fraction`.
        seed: of the draw, for `fraction`.
        listed: whether a list names the `test` or the `train` classes.

    Raises:
        ManifestError: a file or column is missing, a column is unknown, a label is empty or has two names, a
            class has two labels or trains and tests, or an image does not exist or stands twice.
    """
    table = Path(path).expanduser()
    if not table.is_file():
        raise ManifestError(f"data.path='{table}' is not a file (looked in '{Path.cwd()}'). Name the CSV.")
    columns, rows = _read_rows(table)
    base = layout.require_folder(root) if root is not None else table.parent.absolute()
    classes = [layout.normal(row["class"] if "class" in columns else row["label"]) for row in rows]
    labels = [layout.normal(row["label"]) for row in rows]
    _check_names(table, labels, classes)
    paths = [row["path"].replace("\\", "/") for row in rows]  # of a table that was made on Windows
    _check_repeated(table, rows, real_places(base, paths))
    class_names = _ordered(classes, labels)
    if split is None and "role" in columns:
        roles = [row["role"] for row in rows]
    else:
        roles = layout.divide_classes(class_names, split or "order", train_fraction, seed, listed, base)
        role_of = dict(zip(class_names, roles, strict=True))
        roles = [role_of[name] for name in classes]
    return layout.build(
        base,
        paths,
        classes,
        roles,
        class_names,
        boxes=_boxes(table, columns, rows),
        super_classes=[row["super_class"] for row in rows] if "super_class" in columns else None,
    )


def _read_rows(table: Path) -> tuple[list[str], list[Row]]:
    with table.open("rb") as stream:
        start = stream.read(1024)
    if start.startswith(UTF_16):
        raise ManifestError(f"'{table}' is UTF-16 text. Save it as UTF-8 (in a spreadsheet: CSV UTF-8).")
    if b"\0" in start:
        raise ManifestError(
            f"'{table}' is no text. Save a table as CSV (UTF-8); unpack an archive, and name its folder."
        )
    # Paths may hold any bytes; names of classes may not (see `Manifest`).
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        # A saved manifest opens with a line of comment.
        lines = file.readlines()
    comment = int(bool(lines) and lines[0].startswith("#"))
    reader = csv.DictReader(lines[comment:], strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        raw_rows = list(reader)
    except csv.Error as error:
        raise ManifestError(
            f"'{table}' line {comment + reader.reader.line_num} cannot be read ({error}). "
            "A field in quotes ends with a quote, and a quote inside it is written twice."
        ) from error
    _check_columns(table, columns)
    rows = [_check_row(table, row, number) for number, row in enumerate(raw_rows, start=1)]
    if not rows:
        raise ManifestError(f"'{table}' has a header but no rows.")
    # Empty columns of a saved manifest (no boxes) mean what absent ones mean.
    filled = [name for name in columns if name in ("path", "label") or any(row[name] for row in rows)]
    for number, row in enumerate(rows, start=1):
        if "role" in filled and row["role"] not in ROLES:
            raise ManifestError(
                f"'{table}' row {number} has role '{row['role']}'. Choose from {', '.join(ROLES)}."
            )
    return filled, rows


def _check_columns(table: Path, columns: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        other = next((mark for mark in (";", "\t") if any(mark in name for name in columns)), None)
        hint = f" Its fields are divided by {other!r}: save it with commas." if other else ""
        raise ManifestError(
            f"'{table}' has the columns {', '.join(columns) or '(none)'}; '{missing[0]}' is missing.{hint}"
        )
    doubled = [name for name in columns if columns.count(name) > 1]
    if doubled:
        raise ManifestError(f"'{table}' has two columns '{doubled[0]}': rename or remove one.")
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        # Not ignored: a misspelt 'role' would quietly give another split.
        raise ManifestError(
            f"'{table}' has an unknown column '{unknown[0]}': rename or remove it. "
            f"Known columns: {', '.join(COLUMNS)}."
        )
    box = [name for name in BOX if name in columns]
    if box and len(box) < 4:
        raise ManifestError(f"'{table}' has only {', '.join(box)} of the box: wanted {', '.join(BOX)}.")


def _check_row(table: Path, row: dict[str | None, str | None], number: int) -> Row:
    if None in row or None in row.values():
        raise ManifestError(f"'{table}' row {number} has more or fewer fields than the header.")
    clean = {str(name): (value or "").strip() for name, value in row.items()}
    for name in ("path", "label", "class"):
        if clean.get(name, "filled") == "":
            raise ManifestError(f"'{table}' row {number} has no {name}.")
    return clean


def _check_names(table: Path, labels: list[str], classes: list[str]) -> None:
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for number, (label, name) in enumerate(zip(labels, classes, strict=True), start=1):
        for key in (("label", label), ("class", name)):
            other = first.setdefault(key, (label, name))
            if other != (label, name):
                raise ManifestError(
                    f"'{table}' row {number} has label '{label}' and class '{name}', an earlier row label "
                    f"'{other[0]}' and class '{other[1]}': a label has one class, and a class one label."
                )


def _check_repeated(table: Path, rows: list[Row], places: list[str]) -> None:
    """An image that stands twice is its own neighbour; by boxes it may hold several objects."""
    first: dict[tuple[str, ...], int] = {}
    for number, (row, place) in enumerate(zip(rows, places, strict=True), start=1):
        earlier = first.setdefault((place, *(row.get(edge, "") for edge in BOX)), number)
        if earlier != number:
            names = aliases(rows[earlier - 1]["path"], row["path"])
            raise ManifestError(
                f"'{table}' rows {earlier} and {number} are of the same image, {names}. Remove one."
            )


def _ordered(classes: list[str], labels: list[str]) -> list[str]:
    number_of = dict(zip(classes, labels, strict=True))
    if all(label.isascii() and label.isdigit() for label in labels):
        return sorted(number_of, key=lambda name: (int(number_of[name]), name))
    return sorted(number_of)


def _boxes(table: Path, columns: list[str], rows: list[Row]) -> np.ndarray | None:
    if "left" not in columns:
        return None
    try:
        boxes = np.array([[int(row[edge]) for edge in BOX] for row in rows], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ManifestError(
            f"'{table}' has a box that is not four whole numbers of pixels: {error}"
        ) from error
    empty = np.flatnonzero((boxes[:, :2] >= boxes[:, 2:]).any(axis=1))
    if len(empty):
        raise ManifestError(
            f"'{table}' row {empty[0] + 1} has the empty box {tuple(boxes[empty[0]].tolist())} ({len(empty)} "
            "such). right and bottom are edges, further than left and top: not width and height."
        )
    return boxes
