"""What the page reads from the folders of runs: curves and retrieval sheets, of a bounded number of runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unseen.report.runs import Run
from unseen.tracking.sheet import RetrievalSheet

MOST_CURVES, MOST_POINTS = 200, 120
"""Runs whose curves are on the page, and points of a curve: 2 kB each."""
MOST_SHEETS = 24
"""Runs whose retrieval sheets are on the page: up to 400 kB each, where they share no pictures."""

Curve = tuple[list[int], list[float]]


def curves(runs: Sequence[Run], numbers: Mapping[Path, int]) -> dict[int, dict[str, Curve]]:
    """Number of a run → name of a curve → epochs and values; of the first runs that left a table."""
    found: dict[int, dict[str, Curve]] = {}
    for run in runs:
        if len(found) == MOST_CURVES:
            break
        if lines := read_curves(run.folder / "metrics.csv", skip=set(run.record.metrics) - {"validation"}):
            found[numbers[run.folder]] = lines
    return found


def read_curves(table: Path, skip: set[str]) -> dict[str, Curve]:
    """Column of `metrics.csv` → epochs, counted from 1, and values; long curves are thinned.

    Args:
        table: with columns `step` and `epoch`; what is logged at the start of an epoch, or at the end of the
            run, has a step alone.
        skip: splits whose results are logged once, at the end.

    Returns:
        Nothing where there is no such table, or none that can be read.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        ends = sorted({(int(float(row["step"])), int(row["epoch"]) + 1) for row in rows if row["epoch"]})
        by_epoch: set[str] = set()
        columns: dict[str, dict[int, float]] = {}
        # Rows without an epoch last: they count only for what is never logged with one (rates, not results).
        for row in sorted(rows, key=lambda row: not row["epoch"]):
            has_epoch = bool(row["epoch"])
            epoch = int(row["epoch"]) + 1 if has_epoch else _epoch_at(int(float(row["step"])), ends)
            for name, cell in row.items():
                # A row that is longer than the header has a rest without a name.
                if not name or name in ("step", "epoch") or not cell or name.split("/")[0] in skip:
                    continue
                if not has_epoch and name in by_epoch:
                    continue
                if math.isfinite(value := float(cell)):
                    columns.setdefault(name, {})[epoch] = float(f"{value:.4g}")
                    by_epoch |= {name} if has_epoch else set()
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        return {}
    return {name: _thinned(points) for name, points in columns.items()}


def _epoch_at(step: int, ends: Sequence[tuple[int, int]]) -> int:
    """The epoch that a step belongs to, by the steps at which epochs end."""
    return next((epoch for end, epoch in ends if step <= end), ends[-1][1] + 1 if ends else 1)


def _thinned(points: Mapping[int, float]) -> Curve:
    epochs = sorted(points)
    if len(epochs) > MOST_POINTS:
        places = [round(i * (len(epochs) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]
        epochs = [epochs[place] for place in places]
    return epochs, [points[epoch] for epoch in epochs]


def sheets(
    runs: Sequence[Run], numbers: Mapping[Path, int]
) -> tuple[dict[int, dict[str, Any]], dict[str, dict[int, tuple[str, str]]]]:
    """The retrieval sheets of the first runs that left one.

    Returns:
        number of a run → its sheet; content hash of a manifest → row → class name and JPEG in base64.
    """
    found: dict[int, dict[str, Any]] = {}
    pictures: dict[str, dict[int, tuple[str, str]]] = {}
    for run in runs:
        if len(found) == MOST_SHEETS:
            break
        try:
            sheet = RetrievalSheet.load(run.folder / "retrieval_sheet.json")
        except (OSError, ValueError):
            continue
        images = pictures.setdefault(sheet.manifest, {})
        images |= {row: (sheet.names[row], picture) for row, picture in sheet.thumbnails.items()}
        found[numbers[run.folder]] = {
            "manifest": sheet.manifest,
            "split": sheet.split,
            "rows": [[row.query, row.neighbours, row.similarities, row.right] for row in sheet.rows],
        }
    return found, pictures
