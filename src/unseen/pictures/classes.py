"""How unevenly a metric is spread over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unseen.pictures.canvas import (
    BLUE,
    GREY,
    ORANGE,
    new_figure,
    plain_axes,
    save,
    shortened,
    write,
)


def class_strip(
    path: Path,
    values: NDArray[np.floating],
    names: Sequence[str],
    metric: str = "Recall@1",
    named: int = 8,
) -> Path:
    """Classes in order of a metric, as bars; the worst and the best are named.

    Args:
        path: PNG to write.
        values: `(C,)` in [0, 1]; NaN leaves a class out.
        names: `C` class names.
        metric: what the values are.
        named: how many classes are named at either end.

    Raises:
        ValueError: no class has a value, or the lengths disagree.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values for {len(names)} classes: they must agree.")
    known = np.flatnonzero(np.isfinite(values))
    if len(known) == 0:
        raise ValueError(f"No class has a value of {metric}.")
    order = known[np.argsort(values[known], kind="stable")]
    figure = new_figure(12, 3.6)
    axes = figure.add_axes((0.06, 0.13, 0.53, 0.70))
    plain_axes(axes)
    mean = float(values[order].mean())
    axes.bar(range(len(order)), values[order], width=1.0 if len(order) > 60 else 0.85, color=BLUE)
    axes.axhline(mean, color=ORANGE, linewidth=1.4, linestyle="--")
    axes.set(ylim=(0, 1), xlim=(-0.6, len(order) - 0.4), xticks=[])
    write(axes, 0, mean + 0.02, f"mean of classes {mean:.2f}", color=ORANGE, va="bottom", weight="bold")
    axes.set_xlabel(f"{len(order)} classes, worst first", fontsize=8, color=GREY)
    axes.set_ylabel(metric, fontsize=8, color=GREY)
    write(figure, 0.02, 0.93, f"{metric} by class", fontsize=13, weight="bold", va="center")
    named = min(named, len(order) // 2)
    entries = [f"{values[row]:.2f}  {shortened(names[row], 23)}" for row in order]
    _list(figure, 0.62, "worst", entries[:named])
    _list(figure, 0.81, "best", entries[::-1][:named])
    return save(figure, path)


def _list(figure: Figure, x: float, heading: str, entries: Sequence[str]) -> None:
    write(figure, x, 0.83, heading, fontsize=9, weight="bold", va="center")
    for line, text in enumerate(entries):
        write(figure, x, 0.75 - 0.078 * line, text, fontsize=8, va="center")
