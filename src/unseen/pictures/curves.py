"""Training curves, from the sparse table that Lightning's CSV logger writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from unseen.pictures.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    new_figure,
    plain_axes,
    save,
    write,
)
from unseen.tracking.table import metric_title

COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, BLACK, GREY)
LINES = ("-", "--", "-.", ":")
Series = list[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Args:
        title: above it.
        unit: on its vertical axis.
        columns: column of the table, or its start with `*`, → name in the legend (`*`: the rest of the name).
        logarithmic: vertical axis.
    """

    title: str
    unit: str
    columns: Mapping[str, str]
    logarithmic: bool = False


PANELS = (
    Panel("Training loss", "loss", {"train/loss": "total", "train/metric_loss": "metric"}),
    Panel("Validation classes", "share", {"validation/*": "*"}),
    Panel("Adversary: class accuracy", "share", {"train/adversary_accuracy": "head, training"}),
    Panel("Adversary: loss", "cross entropy", {"train/adversary_loss": "head"}),
    Panel("Adversary: strength λ", "λ", {"train/adversary_strength": "λ"}),
    Panel("Gradient at the backbone", "norm", {"train/gradient_norm_*": "from *"}, logarithmic=True),
    Panel("Linear probe of the features", "class accuracy", {"probe/*": "* classes"}),
    Panel("Learning rate", "rate", {"lr-*": "*"}, logarithmic=True),
)


def training_curves(path: Path, table: Path, title: str = "Training") -> Path:
    """Small plots of whatever the table holds; plots without values are left out.

    Args:
        path: PNG to write.
        table: `metrics.csv`, with a column `step`; other columns may be empty in most rows.
        title: heading.

    Raises:
        ValueError: the table holds none of the known columns.
    """
    columns = read_columns(table)
    panels = [(panel, lines) for panel in PANELS if (lines := _lines(panel, columns))]
    if not panels:
        raise ValueError(f"'{table}' has no curve to draw; its columns: {', '.join(columns) or 'none'}.")
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    width, height = 3.7 * across, 2.55 * down + 0.5
    figure = new_figure(width, height)
    write(figure, 0.15 / width, 1 - 0.26 / height, title, fontsize=13, weight="bold", va="center")
    grid = figure.add_gridspec(
        down,
        across,
        left=0.62 / width,
        right=1 - 0.15 / width,
        bottom=0.5 / height,
        top=1 - 0.85 / height,
        wspace=0.34,
        hspace=0.62,
    )
    for index, (panel, lines) in enumerate(panels):
        _draw(figure.add_subplot(grid[index // across, index % across]), panel, lines)
    return save(figure, path)


def read_columns(table: Path) -> dict[str, Series]:
    """Column → its `(step, value)` pairs in the order of the file, without empty and non-finite cells."""
    columns: dict[str, Series] = {}
    with Path(table).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                # A row that is longer than the header has a rest without a name.
                if name and name not in ("step", "epoch") and cell and math.isfinite(float(cell)):
                    columns.setdefault(name, []).append((int(float(row["step"])), float(cell)))
    return columns


def _lines(panel: Panel, columns: Mapping[str, Series]) -> dict[str, Series]:
    """Name in the legend → series; those that coincide share a line and its name."""
    together: list[tuple[list[str], Series]] = []
    for pattern, label in panel.columns.items():
        start = pattern.rstrip("*")
        for name, series in columns.items():
            if name != pattern and not (pattern.endswith("*") and name.startswith(start)):
                continue
            # A learning rate is named after its optimiser too: `lr-AdamW/backbone`.
            own = label.replace("*", metric_title(name[len(start) :].split("/")[-1]))
            same = next((names for names, other in together if other == series), None)
            if same is None:
                together.append(([own], series))
            elif not name.endswith("_no_decay"):
                same.append(own)
    return {", ".join(names): series for names, series in together}


def _draw(axes: Axes, panel: Panel, lines: Mapping[str, Series]) -> None:
    plain_axes(axes)
    for index, (label, series) in enumerate(lines.items()):
        steps, values = zip(*series, strict=True)
        axes.plot(
            steps,
            values,
            color=COLORS[index % len(COLORS)],
            linestyle=LINES[index % len(LINES)],
            linewidth=1.6,
            # A run of one epoch has one point and no line.
            marker="o" if len(series) < 30 else None,
            markersize=3,
            label=label,
        )
    if panel.logarithmic and all(value > 0 for series in lines.values() for _, value in series):
        axes.set_yscale("log")
    last = max(step for series in lines.values() for step, _ in series)
    axes.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(panel.title, fontsize=10, loc="left", color=BLACK)
    axes.set_xlabel("step", fontsize=8, color=GREY)
    axes.set_ylabel(panel.unit, fontsize=8, color=GREY)
    if len(lines) > 1:
        axes.legend(fontsize=7, frameon=False)
