"""Results as a table for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rich import box
from rich.table import Table

SPLITS = {
    "unseen": "unseen\nclasses",
    "untrained": "unseen,\nbefore\ntraining",
    "validation": "classes\nthat\nvalidate",
    "seen": "seen\nclasses,\nheld out",
    "unseen_matched": "unseen,\nas many\nas seen",
    "gap": "gap:\nseen −\nunseen",
    "untrained_gap": "gap\nbefore\ntraining",
}
"""Split of a record → heading of its column, in the order of the columns."""

LEGEND = {
    "intervals": "± of unseen classes: half the 95 % interval over test classes.",
    "spread": "± of the gap: standard deviation over draws of equal galleries.",
    "untrained": "Before training: plain features of the backbone.",
}


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


def duration(seconds: float) -> str:
    """For people: `1 h 5 min`, `2 min 3 s`, `4 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def results_table(
    metrics: Mapping[str, Mapping[str, float]],
    *,
    spread: Mapping[str, Mapping[str, float]] | None = None,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    title: str | None = None,
) -> Table:
    """One run: a row for each metric, a column for each split; values in percent.

    Args:
        metrics: split → metric → value, as in a record.
        spread: split → metric → standard deviation; shown for the gap.
        intervals: split → metric → (low, high); shown, by half the width, for unseen classes.
        title: above the table.
    """
    unseen_intervals = (intervals or {}).get("unseen", {})
    margins: dict[str, Mapping[str, float]] = {
        "unseen": {name: (high - low) / 2 for name, (low, high) in unseen_intervals.items()},
        "gap": (spread or {}).get("gap", {}),
    }
    splits = [split for split in SPLITS if split in metrics]
    splits += [split for split in metrics if split not in SPLITS]
    table = Table(
        title=title,
        caption=_legend(metrics, margins),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        # Seven splits fit 80 characters one apart, fewer two apart.
        padding=(0, 0, 0, 0 if len(splits) > 6 else 1),
        title_style="bold",
        caption_justify="left",
    )
    table.add_column("%", no_wrap=True)
    for split in splits:
        style = "bold" if split == "unseen" else None
        table.add_column(SPLITS.get(split, split), justify="right", no_wrap=True, style=style)
    for name in dict.fromkeys(name for split in splits for name in metrics[split]):
        cells = [
            _percent(
                metrics[split].get(name, math.nan),
                margins.get(split, {}).get(name, math.nan),
                signed=split.endswith("gap"),
            )
            for split in splits
        ]
        table.add_row(metric_title(name), *cells)
    return table


def _legend(metrics: Mapping[str, object], margins: Mapping[str, Mapping[str, float]]) -> str | None:
    shown = {
        "intervals": bool(margins["unseen"]),
        "spread": any(math.isfinite(value) for value in margins["gap"].values()),
        "untrained": "untrained" in metrics,
    }
    return "\n".join(LEGEND[name] for name, is_shown in shown.items() if is_shown) or None


def _percent(value: float, margin: float, *, signed: bool) -> str:
    if not math.isfinite(value):
        return "–"
    number = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return f"{number} ±{100 * margin:.1f}" if math.isfinite(margin) else number
