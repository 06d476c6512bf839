"""Comparison and runs as plain data for the page's scripts, small enough for thousands of runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unseen.report.comparison import Comparison
from unseen.report.explorer import ERRORS
from unseen.report.notes import notes
from unseen.report.page.classes import class_values
from unseen.report.page.run_files import curves, sheets
from unseen.report.runs import Run, Runs, as_text, command
from unseen.tracking.table import SPLITS, metric_title


def page_content(comparison: Comparison, runs: Runs, beside: Path) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        comparison: of the runs.
        runs: all of them.
        beside: folder of the page; paths are relative to it.

    Returns:
        Plain data. Runs are numbered, finished ones first, and referred to by number.
    """
    everything = [*runs.finished, *runs.unfinished]
    numbers = {run.folder: number for number, run in enumerate(everything)}
    compared = _compared(comparison, numbers)
    metrics, splits = _named(everything, comparison.metrics)
    settings, keys, values = _settings(everything)
    read = [everything[number] for number in _in_turns(comparison, numbers)]
    chosen_sheets, thumbnails = sheets(read, numbers)

    def plain(value: Any) -> Any:
        return _plain(value, numbers, beside)

    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("unseen-dml"),
        "compare": comparison.compare,
        "reference": comparison.reference,
        "methods": list(comparison.methods),
        "metrics": [{"key": key, "title": metric_title(key)} for key in comparison.metrics],
        "split": comparison.split,
        "margin": comparison.margin,
        "level": comparison.level,
        "titles": {
            "metrics": {key: metric_title(key) for key in metrics},
            "splits": {key: SPLITS.get(key, key).replace("-\n", "-").replace("\n", " ") for key in splits},
        },
        **{
            name: plain(getattr(comparison, name))
            for name in (
                "cells",
                "results",
                "differences",
                "overall",
                "costs",
                "settings",
                "missing",
                "unequal",
                "duplicates",
            )
        },
        "unreadable": plain(runs.unreadable),
        "waiting": len(runs.waiting),
        # What the page says elsewhere, with links, is left out.
        "notes": notes(replace(comparison, missing=(), duplicates=(), unequal=())),
        "factors": list(comparison.cells[0].factors) if comparison.cells else [],
        "names": {"metrics": metrics, "splits": splits, "keys": keys, "values": values},
        "runs": [
            _run(run, number, comparison, compared.get(number), metrics, splits, beside)
            | {"settings": settings[number]}
            for number, run in enumerate(everything)
        ],
        "curves": curves(read, numbers),
        "classes": class_values(comparison, {number: everything[number] for number in compared}, compared),
        "sheets": chosen_sheets,
        "thumbnails": thumbnails,
    }


def _compared(comparison: Comparison, numbers: Mapping[Path, int]) -> dict[int, tuple[str, str]]:
    """Number of a run that counts → its cell and method."""
    return {
        numbers[point.folder]: (result.cell, result.method)
        for result in comparison.results
        for point in result.points
        if point.folder in numbers
    }


def _in_turns(comparison: Comparison, numbers: Mapping[Path, int]) -> list[int]:
    """Runs that count: the first seed of every cell and method, then the second of each, and so on."""
    groups: dict[tuple[str, str], list[int]] = {}
    for result in comparison.results:
        group = groups.setdefault((result.cell, result.method), [])
        group += [numbers[point.folder] for point in result.points if numbers[point.folder] not in group]
    longest = max(map(len, groups.values()), default=0)
    return [group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)]


def _named(runs: Sequence[Run], first: Sequence[str]) -> tuple[list[str], list[str]]:
    """Metrics, some of them first, and splits in the order of the terminal's table, that any run has."""
    metrics: dict[str, None] = dict.fromkeys(first)
    splits: dict[str, None] = {}
    for run in runs:
        for split, values in run.record.metrics.items():
            splits[split] = None
            metrics |= dict.fromkeys(values)
    ordered = [split for split in SPLITS if split in splits]
    return list(metrics), ordered + [split for split in splits if split not in SPLITS]


def _settings(runs: Sequence[Run]) -> tuple[list[list[int]], list[str], list[str]]:
    """Of each run key, value, key, value, … as numbers in a list of keys and one of values."""
    keys: dict[str, int] = {}
    values: dict[str, int] = {}
    settings = []
    for run in runs:
        found = run.settings | run.record.choices
        numbers: list[int] = []
        for key, value in found.items():
            if key.endswith("._partial_"):  # how a part is built, and not which
                continue
            numbers += keys.setdefault(key, len(keys)), values.setdefault(as_text(value), len(values))
        settings.append(numbers)
    return settings, list(keys), list(values)


def _run(
    run: Run,
    number: int,
    comparison: Comparison,
    compared: tuple[str, str] | None,
    metrics: Sequence[str],
    splits: Sequence[str],
    beside: Path,
) -> dict[str, Any]:
    record = run.record
    memory = record.peak_memory
    return {
        "id": number,
        "name": run.name,
        "folder": _relative(run.folder, beside),
        "status": record.status,
        "error": record.error,
        "cell": compared[0] if compared else None,
        "method": run.value(comparison.compare),
        "factors": [run.value(key) for key in (comparison.cells[0].factors if comparison.cells else ())],
        "seed": run.seed,
        "split": run.split,
        "values": [
            [_number(record.metrics[split].get(metric, math.nan)) for metric in metrics]
            if split in record.metrics
            else None
            for split in splits
        ],
        "intervals": {
            metric: [_number(low), _number(high)]
            for metric, (low, high) in record.intervals.get(comparison.split, {}).items()
            if metric in comparison.metrics
        },
        "epoch": record.chosen_epoch,
        "strength": record.adversary_strength,
        "steps": record.steps,
        "speed": _number(record.images_per_second),
        "seconds": _number(record.seconds.get("train_total", record.seconds.get("train", math.nan))),
        "memory": memory.host_bytes,
        "gpu_memory": memory.accelerator_bytes,
        "parameters": record.parameters,
        "machine": ", ".join(sorted(set(record.environment.accelerators))) or record.environment.processor,
        "commit": record.environment.commit,
        "versions": f"{record.environment.versions.get('unseen-dml', '?')}, "
        f"torch {record.environment.versions.get('torch', '?')}",
        "finished": record.finished,
        "job_key": record.job_key,
        "command": command(run),
        "overrides": record.overrides,
        "errors": (run.folder / ERRORS).is_file(),
    }


def _plain(value: Any, numbers: Mapping[Path, int], beside: Path) -> Any:
    """The same as JSON knows it; the folder of a run becomes its number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name), numbers, beside) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, numbers, beside) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, numbers, beside) for item in value]
    if isinstance(value, Path):
        return numbers[value] if value in numbers else _relative(value, beside)
    if isinstance(value, Enum):
        return value.value
    return _number(value) if isinstance(value, float) else value


def _number(value: float | None) -> float | None:
    """Six digits, which no chart shows; null where JSON has no number."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _relative(path: Path, beside: Path) -> str:
    try:
        return Path(os.path.relpath(path, beside)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
