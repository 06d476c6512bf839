"""A search as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from unseen.sweep.search import Study, shown


def trials_table(study: Study, most: int = 10) -> Table:
    """The best trials, a row each: their values and what was sought.

    Args:
        study: with at least one trial that came to a value.
        most: rows.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("trial", justify="right")
    for name in study.objectives:
        table.add_column(name, justify="right", style="bold")
    for key in study.space:
        table.add_column(key.rpartition(".")[2], justify="right", overflow="fold")
    for trial in study.complete[:most]:
        values = [shown(name, value) for name, value in zip(study.objectives, trial.values, strict=True)]
        sought = [
            f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.params.values()
        ]
        table.add_row(str(trial.number), *values, *sought)
    return table
