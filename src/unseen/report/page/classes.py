"""Values of single unseen classes, mean over seeds, for the page to subtract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unseen.report.comparison import Comparison
from unseen.report.runs import Run

MOST_CLASSES, MOST_VALUES = 1_000, 400_000
"""Classes of a cell, and values on a page: 5 bytes each."""

PER_UNIT = 10_000
"""Values are whole numbers of hundredths of a percent."""


def class_values(
    comparison: Comparison, runs: Mapping[int, Run], compared: Mapping[int, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Of every cell and metric the value of every class by every method.

    Of more than `MOST_CLASSES` classes those stay on which the methods differ most; cells that no longer
    fit are left out.

    Args:
        comparison: of the runs.
        runs: number → run, those that count.
        compared: number → its cell and method.

    Returns:
        `cell`, `metric`, `of` (number of classes), `classes` (their names), and `values`, method → whole
        numbers or null.
    """
    members: dict[str, dict[str, list[Run]]] = {}
    for number, (name, method) in compared.items():
        members.setdefault(name, {}).setdefault(method, []).append(runs[number])
    found: list[dict[str, Any]] = []
    room = MOST_VALUES
    for metric in comparison.metrics:
        for cell in comparison.cells:
            methods = members.get(cell.name, {})
            means = {method: mean for method, of in methods.items() if (mean := _means(of, metric))}
            if len(means) < 2:
                continue
            every = sorted(set().union(*means.values()))
            kept = _most_different(every, list(means.values()))
            size = len(kept) * len(means)
            if size > room:
                continue
            room -= size
            values = {
                method: [
                    round(PER_UNIT * mean[name]) if math.isfinite(mean.get(name, math.nan)) else None
                    for name in kept
                ]
                for method, mean in means.items()
            }
            entry = {"cell": cell.name, "metric": metric, "of": len(every), "classes": kept}
            found.append(entry | {"values": values})
    return found


def _means(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """Class → mean over the runs that have it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.record.per_class.get(metric, {}).items():
            if math.isfinite(value):
                values.setdefault(name, []).append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}


def _most_different(names: list[str], means: Sequence[Mapping[str, float]]) -> list[str]:
    if len(names) <= MOST_CLASSES:
        return names

    def spread(name: str) -> float:
        values = [mean[name] for mean in means if name in mean]
        return max(values) - min(values)

    return sorted(sorted(names, key=spread, reverse=True)[:MOST_CLASSES])
