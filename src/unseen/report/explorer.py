"""The errors of a run as a Parquet table that explorers of embeddings open, embedding-atlas first of all."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.data.images import Files, ImageError, attempt, in_order
from unseen.data.manifest import Manifest
from unseen.files import replacing
from unseen.report.runs import Run
from unseen.tracking.sheet import jpeg

log = logging.getLogger(__name__)

ERRORS = "errors.parquet"
SIDE = 96
"""Pixels of a thumbnail's longer side."""
CHUNK = 2048
"""Rows that are in memory with their thumbnails: about 8 MB."""


def write_errors(runs: Sequence[Run]) -> list[Path]:
    """Write `errors.parquet` into the folder of each run that left its queries; up-to-date ones stay.

    A row is an unseen image that was searched with: `id` (row of the manifest), `path`, `label`, `predicted`
    (class of the nearest neighbour), `right`, `similarity` (of the nearest), every metric of the query,
    `x` and `y` (principal plane), `neighbour_labels`, `neighbour_paths`, `neighbour_similarities`,
    `neighbors` (`{ids, distances}`: those that are rows of the same table, from 0, with 1 − similarity), and
    `thumbnail` (`{bytes, path}`; null where the file cannot be read).

    Returns:
        The tables, of the runs that have one.

    Raises:
        ValueError: pyarrow is not installed.
    """
    arrow = _pyarrow()
    written = []
    for run in runs:
        source, path = run.folder / "queries.npz", run.folder / ERRORS
        if path.is_file() and source.is_file() and path.stat().st_mtime >= source.stat().st_mtime:
            written.append(path)
            continue
        try:
            with np.load(source) as saved:
                columns = dict(saved)
            manifest = Manifest.load(run.folder / "manifest.csv")
            _write(arrow, path, columns, manifest, run.value("data.crop_to_box") == "True")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            log.warning("No %s for '%s': %s", ERRORS, run.folder, problem)
            continue
        written.append(path)
    return written


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "explorer=true writes Parquet tables with pyarrow, which is not installed: "
            "pip install 'unseen-dml[explorer]', or leave explorer=false."
        ) from error
    return pyarrow


def _write(
    arrow: ModuleType, path: Path, columns: dict[str, NDArray[Any]], manifest: Manifest, crop_to_box: bool
) -> None:
    ids, neighbours, similarities = columns["ids"], columns["neighbours"], columns["similarities"]
    row_of = np.full(len(manifest) + 1, -1)  # the last place is what -1, no neighbour, points to
    row_of[ids] = np.arange(len(ids))
    metrics = {
        name: values
        for name, values in columns.items()
        if values.ndim == 1 and name not in ("ids", "labels") and values.dtype.kind == "f"
    }
    writer = None
    with replacing(path) as temporary:
        try:
            for rows, pictures in _thumbnails(ids, manifest, crop_to_box):
                found = [[int(image) for image in line if image >= 0] for line in neighbours[rows].tolist()]
                part = _part(arrow, manifest, ids[rows], found, similarities[rows], row_of)
                part |= {name: arrow.array(values[rows]) for name, values in metrics.items()}
                part |= {axis: arrow.array(columns["position"][rows, i]) for i, axis in enumerate("xy")}
                part["thumbnail"] = arrow.array(
                    pictures, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
                )
                table = arrow.table(part)
                writer = writer or arrow.parquet.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def _part(
    arrow: ModuleType,
    manifest: Manifest,
    ids: NDArray[np.int64],
    found: list[list[int]],
    similarities: NDArray[np.float32],
    row_of: NDArray[np.int64],
) -> dict[str, Any]:
    """What text and numbers say of some queries; `found` are their neighbours, rows of the manifest."""

    def name(image: int) -> str:
        return manifest.class_names[int(manifest.labels[image])]

    predicted = [name(images[0]) if images else None for images in found]
    truth = [name(image) for image in ids]
    alike = [line[: len(images)].tolist() for images, line in zip(found, similarities, strict=True)]
    neighbors = [
        {
            "ids": [int(row_of[image]) for image in images if row_of[image] >= 0],
            "distances": [1 - value for image, value in zip(images, line, strict=True) if row_of[image] >= 0],
        }
        for images, line in zip(found, alike, strict=True)
    ]
    texts = arrow.list_(arrow.string())
    kind = arrow.struct([("ids", arrow.list_(arrow.int64())), ("distances", arrow.list_(arrow.float32()))])
    return {
        "id": arrow.array(ids),
        "path": arrow.array([_shown(manifest.paths[image]) for image in ids]),
        "label": arrow.array(truth),
        "predicted": arrow.array(predicted, arrow.string()),
        "right": arrow.array([one == other for one, other in zip(truth, predicted, strict=True)]),
        "similarity": arrow.array([line[0] if line else None for line in alike], arrow.float32()),
        "neighbour_labels": arrow.array([[name(image) for image in images] for images in found], texts),
        "neighbour_paths": arrow.array(
            [[_shown(manifest.paths[image]) for image in images] for images in found], texts
        ),
        "neighbour_similarities": arrow.array(alike, arrow.list_(arrow.float32())),
        "neighbors": arrow.array(neighbors, kind),
    }


def _thumbnails(
    ids: NDArray[np.int64], manifest: Manifest, crop_to_box: bool
) -> Iterator[tuple[slice, list[dict[str, Any] | None]]]:
    """Rows of the table, `CHUNK` at a time, with their pictures."""
    images = Files(manifest, crop_to_box=crop_to_box)

    def picture(row: int) -> dict[str, Any] | None:
        pixels = attempt(images, row)
        if isinstance(pixels, ImageError):
            return None
        return {"bytes": jpeg(pixels, SIDE), "path": _shown(manifest.paths[row])}

    unreadable = 0
    for start in range(0, len(ids), CHUNK):
        rows = slice(start, min(start + CHUNK, len(ids)))
        pictures = list(in_order(picture, ids[rows].tolist()))
        unreadable += pictures.count(None)
        yield rows, pictures
    if unreadable:
        log.warning("%d of %d images under '%s' have no thumbnail.", unreadable, len(ids), manifest.root)


def _shown(path: str) -> str:
    """A path as UTF-8, which Parquet wants; a name of other bytes is shown with marks in their place."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
