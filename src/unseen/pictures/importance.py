"""Which hyper-parameters mattered in a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unseen.pictures.canvas import BLUE, GREY, new_figure, plain_axes, save, shortened, write
from unseen.tracking.table import metric_title


def importance_bars(path: Path, importances: Mapping[str, float], objective: str) -> Path:
    """A bar for each key, the most important on top.

    Args:
        path: PNG to write.
        importances: key → share of the objective's variance, in [0, 1].
        objective: what the variance is of.

    Raises:
        ValueError: there is no key.
    """
    if not importances:
        raise ValueError("There are no importances to draw.")
    keys = sorted(importances, key=lambda key: importances[key])
    height = 0.36 * len(keys) + 1.2
    figure = new_figure(7, height)
    axes = figure.add_axes((0.42, 0.5 / height, 0.5, 0.36 * len(keys) / height))
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(keys)), [importances[key] for key in keys], color=BLUE, height=0.62)
    axes.set_yticks(range(len(keys)), [shortened(key, 38) for key in keys])
    axes.set(xlim=(0, 1))
    for place, key in enumerate(keys):
        write(axes, importances[key] + 0.015, place, f"{importances[key]:.2f}", va="center")
    axes.set_xlabel("share of the variance over trials (fANOVA)", fontsize=8, color=GREY)
    title = f"What moved {metric_title(objective)}"
    write(figure, 0.02, 1 - 0.3 / height, title, fontsize=12, weight="bold", va="center")
    return save(figure, path)
