"""Draws the study's three figures from its records: `python docs/study/figures.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unseen.pictures.canvas import BLACK, BLUE, GREY, ORANGE, PALE, new_figure, plain_axes, save, write
from unseen.report.runs import Run, load_runs
from unseen.report.statistics import t_interval

RECORDS = Path(__file__).parent
METRICS = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}
ABLATIONS = {"baseline": (GREY, "last layer (baseline)"), "gdfl": (BLUE, "several layers (gdfl)")}
FORMS = {
    "attention": "attention",
    "grl_repaired": "reversal, repaired",
    "masking": "masking",
    "virtual": "virtual classes",
    "taps": "taps",
    "taps_random": "taps, at random",
    "shared": "shared characteristics",
    "shared_random": "shared, at random",
}
MARGIN = 0.5
"""Points within which two methods are called equivalent."""


def percent(runs: Iterable[Run], split: str, metric: str) -> list[float]:
    """A metric of each run, in %."""
    return [100 * run.metric(split, metric) for run in runs]


def chosen(runs: Iterable[Run], **choices: str) -> list[Run]:
    """Runs that have these choices."""
    return [run for run in runs if all(run.value(group) == choice for group, choice in choices.items())]


def draw_layers(path: Path) -> Path:
    """One line a loss: its baseline and several layers on the test classes, each seed a dot."""
    runs = load_runs(RECORDS / "confirmation").finished
    losses = _by_gain(runs)
    figure = new_figure(8.6, 0.42 * len(losses) + 1.8)
    for column, (metric, title) in enumerate(METRICS.items()):
        axes = figure.add_axes((0.16 + 0.43 * column, 0.2, 0.39, 0.6))
        plain_axes(axes)
        untrained = float(np.mean(percent(runs, "untrained", metric)))
        axes.axvline(untrained, color=ORANGE, linewidth=1.2, linestyle="--")
        write(axes, untrained, -0.75, "not trained", color=ORANGE, fontsize=7.5, ha="center")
        for row, loss in enumerate(losses):
            _draw_gain(axes, row, chosen(runs, loss=loss), metric)
        axes.set_ylim(len(losses) - 0.5, -0.6)
        axes.set_yticks(range(len(losses)), losses if column == 0 else [""] * len(losses), color=BLACK)
        axes.set_xlabel(f"{title} on unseen classes, %", fontsize=8, color=GREY)
    _title(figure, "Whatever the loss, several layers tell unseen classes better apart")
    _legend(figure, "● a seed of training   ❘ mean")
    return save(figure, path)


def _by_gain(runs: Sequence[Run]) -> list[str]:
    """Losses, the one that several layers help most first."""

    def gain(loss: str) -> float:
        before, after = (
            np.mean(percent(chosen(runs, loss=loss, ablation=ablation), "unseen", "map_at_r"))
            for ablation in ABLATIONS
        )
        return float(after - before)

    return sorted({run.value("loss") for run in runs}, key=gain, reverse=True)


def _draw_gain(axes: Axes, row: int, runs: Sequence[Run], metric: str) -> None:
    means = []
    for ablation, (color, _) in ABLATIONS.items():
        values = percent(chosen(runs, ablation=ablation), "unseen", metric)
        means.append(float(np.mean(values)))
        axes.plot(values, [row] * len(values), "o", color=color, markersize=4.5, alpha=0.75, zorder=3)
        axes.plot([means[-1]] * 2, [row - 0.28, row + 0.28], color=color, linewidth=2, zorder=3)
    _arrow(axes, (means[0], row), (means[1], row))


def draw_adversaries(path: Path) -> Path:
    """Each form's difference from no adversary: a dot a cell, mean and 95 % interval, margin shaded."""
    sweeps = [load_runs(RECORDS / name).finished for name in ("adversary", "shared")]
    found = {form: [value for runs in sweeps for value in _differences(runs, form)] for form in FORMS}
    shown = {form: values for form, values in found.items() if len(values) > 1}
    figure = new_figure(8.6, 0.36 * len(shown) + 1.6)
    axes = figure.add_axes((0.2, 0.23, 0.77, 0.6))
    plain_axes(axes)
    axes.axvspan(-MARGIN, MARGIN, color=PALE, alpha=0.6, zorder=0)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    for row, (form, values) in enumerate(shown.items()):
        color = GREY if form.endswith("_random") else BLUE
        axes.plot(values, [row] * len(values), "o", color=color, markersize=4.5, alpha=0.45)
        axes.plot(np.mean(values), row, "D", color=color, markersize=6, zorder=4)
        if (interval := t_interval(values)) is not None:
            axes.plot(interval, [row, row], color=color, linewidth=2.2, zorder=3)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [FORMS[form] for form in shown], color=BLACK)
    axes.set_xlabel(
        "MAP@R on held-out classes, points more than without an adversary", fontsize=8, color=GREY
    )
    _title(figure, "No form of the class adversary gains what chance does not")
    write(
        figure,
        0.01,
        0.03,
        "● a loss and a split   ◆ mean, 95 % interval   shaded: equivalent   grey: control at random",
        fontsize=7.5,
        color=GREY,
    )
    return save(figure, path)


def _cell(run: Run) -> tuple[str, int]:
    return run.value("loss"), run.seed


def _differences(runs: Sequence[Run], form: str) -> list[float]:
    """Of a form from no adversary, in the cells of one sweep that have both."""
    without = {_cell(run): run for run in chosen(runs, adversary="none")}
    pairs = [(run, without[_cell(run)]) for run in chosen(runs, adversary=form) if _cell(run) in without]
    return [after - before for after, before in (percent(pair, "validation", "map_at_r") for pair in pairs)]


def draw_gap(path: Path) -> Path:
    """Seen against unseen classes, galleries of one size: an arrow a loss, from baseline to `gdfl`."""
    runs = load_runs(RECORDS / "confirmation").finished
    figure = new_figure(6.4, 6.0)
    axes = figure.add_axes((0.12, 0.14, 0.84, 0.77))
    plain_axes(axes)
    for loss in sorted({run.value("loss") for run in runs}):
        points = []
        for ablation, (color, _) in ABLATIONS.items():
            of_loss = chosen(runs, loss=loss, ablation=ablation)
            splits = ("unseen_matched", "seen")
            unseen, seen = (float(np.mean(percent(of_loss, split, "recall_at_1"))) for split in splits)
            points.append((unseen, seen))
            axes.plot(unseen, seen, "o", color=color, markersize=6, zorder=3)
        _arrow(axes, *points)
    limits = min(axes.get_xlim()[0], axes.get_ylim()[0]) - 1, max(axes.get_xlim()[1], axes.get_ylim()[1]) + 1
    axes.plot(limits, limits, color=ORANGE, linewidth=1.2, linestyle="--")
    write(axes, limits[0] + 1, limits[0] + 1.8, "no gap", color=ORANGE, fontsize=8, rotation=45)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.set_xlabel("Recall@1 on unseen classes, %", fontsize=8, color=GREY)
    axes.set_ylabel("Recall@1 on new images of seen classes, %", fontsize=8, color=GREY)
    _title(figure, "Several layers bring unseen classes closer to seen ones")
    _legend(figure, "● a loss, mean over seeds")
    return save(figure, path)


def _arrow(axes: Axes, start: Sequence[float], end: Sequence[float]) -> None:
    drawn = {"arrowstyle": "-|>", "color": PALE, "lw": 2.5}
    axes.annotate("", xy=end, xytext=start, arrowprops=drawn, zorder=2)  # behind the dots


def _title(figure: Figure, text: str) -> None:
    write(figure, 0.01, 1 - 0.3 / figure.get_figheight(), text, fontsize=11)


def _legend(figure: Figure, signs: str) -> None:
    write(figure, 0.01, 0.1 / figure.get_figheight(), signs, fontsize=7.5, color=GREY)
    for place, (color, name) in zip((0.77, 0.99), ABLATIONS.values(), strict=True):
        write(figure, place, 0.1 / figure.get_figheight(), f"■ {name}", color=color, fontsize=7.5, ha="right")


FIGURES = {
    "study_layers": draw_layers,
    "study_adversaries": draw_adversaries,
    "study_gap": draw_gap,
}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS.parent
    for name, draw in FIGURES.items():
        print(draw(target / f"{name}.png"))
