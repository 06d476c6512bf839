"""Results as tables for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from unseen.tracking.record import RunRecord

SPLITS = {
    "unseen": "unseen\nclasses",
    "seen": "seen\nclasses,\nheld out",
    "unseen_matched": "unseen,\nas many\nas seen",
    "gap": "generalisation\ngap",
    "validation": "validation\nclasses",
}
"""Split of a record → heading of its column, in the order of the columns."""


def metric_title(name: str) -> str:
    """A metric's name as the field writes it: `recall_at_1` → `Recall@1`."""
    at = re.fullmatch(r"(recall|precision)_at_(\d+)", name)
    if at:
        return f"{at[1].capitalize()}@{at[2]}"
    nearest = re.fullmatch(r"knn_accuracy_(\d+)", name)
    if nearest:
        return f"{nearest[1]}-NN accuracy"
    known = {
        "map_at_r": "MAP@R",
        "r_precision": "R-precision",
        "nmi": "NMI",
        "ami": "AMI",
        "probe_accuracy": "linear probe",
    }
    return known.get(name, name.replace("_", " "))


def results_table(metrics: Mapping[str, Mapping[str, float]], title: str | None = None) -> Table:
    """One run: a row for each metric, a column for each split; values in percent.

    Args:
        metrics: split → metric → value, as in a record.
        title: above the table.
    """
    splits = [split for split in SPLITS if split in metrics]
    splits += [split for split in metrics if split not in SPLITS]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("%", no_wrap=True)
    for split in splits:
        table.add_column(
            SPLITS.get(split, split), justify="right", style="bold" if split == "unseen" else None
        )
    for name in dict.fromkeys(name for split in splits for name in metrics[split]):
        cells = [_percent(metrics[split].get(name, math.nan), signed=split == "gap") for split in splits]
        table.add_row(metric_title(name), *cells)
    return table


def runs_table(
    records: Mapping[str, RunRecord], metrics: Sequence[str] = ("recall_at_1", "map_at_r")
) -> Table:
    """Several runs: a row for each, with the choices in which they differ; values in percent.

    Args:
        records: name of a run → its record.
        metrics: each gives a column on unseen classes and one for its generalisation gap.
    """
    differing = [
        group
        for group in dict.fromkeys(group for record in records.values() for group in record.choices)
        if len({record.choices.get(group) for record in records.values()}) > 1
    ]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", *differing):
        table.add_column(heading, overflow="fold")
    table.add_column("seed", justify="right")
    for name in metrics:
        table.add_column(f"{metric_title(name)}\nunseen", justify="right", style="bold")
        table.add_column(f"{metric_title(name)}\ngap", justify="right")
    for run, record in records.items():
        cells = [record.choices.get(group, "–") for group in differing]
        for name in metrics:
            for split in ("unseen", "gap"):
                value = record.metrics.get(split, {}).get(name, math.nan)
                cells.append(_percent(value, signed=split == "gap"))
        table.add_row(run, *cells[: len(differing)], str(record.seed), *cells[len(differing) :])
    return table


def _percent(value: float, signed: bool) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
