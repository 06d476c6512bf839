"""A sweep from what was typed to its end: cells, frozen jobs, the ledger's table, a launcher, a summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from unseen.config.command_line import building
from unseen.config.freeze import Freezer, Frozen
from unseen.config.grid import Cell, cells
from unseen.config.identity import plain
from unseen.config.own import divided, own_settings
from unseen.config.targets import instantiate
from unseen.config.values import UsageError
from unseen.sweep import ledger
from unseen.sweep.job import State
from unseen.sweep.process import STOPPED, interruptible
from unseen.tracking.record import INCIDENTAL, flattened

OF_A_FOLDER = ("run_folder", "choices", "overrides", "trainer.default_root_dir")
"""Keys in which jobs that are one may differ: where it goes, and in which words it was asked for."""
OF_IMAGES = ("data.root", "data.path")
"""Keys that say where the images lie."""


def sweep(typed: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> int:
    """Show what is done and what is to do, and do it.

    Args:
        typed: overrides of the sweep itself (see `conf/sweep.yaml`) and of its jobs.
        config_dir: a user's own groups.
        config_name: primary config of a job.

    Returns:
        0; 1 if a job failed; 130 if the sweep was stopped.

    Raises:
        UsageError: before anything runs: what was typed, or any job that follows from it, cannot work.
    """
    console = Console()
    settings, grid = planned(typed, config_dir, config_name)
    launcher = _launcher(settings)
    freezer = Freezer(config_name, config_dir)
    made = (freezer.freeze(cell.overrides, _root(settings), cell.name or None) for cell in grid)
    frozen = _distinct(made)
    states = ledger.survey([one.job for one in frozen])
    console.print(ledger.table(states))
    console.print(ledger.forecast(states, launcher.at_once), soft_wrap=True)
    if settings.dry_run:
        return 0
    waiting = [one for one in frozen if states[one.job] not in (State.DONE, State.RUNNING)]
    for one in waiting:
        one.save()
    with interruptible() as stopped:
        outcomes = launcher([one.job for one in waiting], settings.lock, console)
    after = ledger.survey(list(states))
    console.print(ledger.summary(after, outcomes, _root(settings)), soft_wrap=True)
    if stopped.is_set():
        return STOPPED
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _distinct(jobs: Iterable[Frozen]) -> list[Frozen]:
    """Each job once, however often the grid has it in other words.

    Raises:
        UsageError: two of them differ in what they do, and are one job for all that: one would not be done.
    """
    found: dict[str, Frozen] = {}
    for one in jobs:
        first = found.setdefault(one.job.key, one)
        if first is not one and (names := _differing(first, one)):
            why = "which changes nothing that is trained"
            if set(names) & set(OF_IMAGES):
                why = "and images are known by their paths below it and their labels, which are the same"
            raise UsageError(
                f"The grid has jobs that differ in {', '.join(names)} alone, {why}: they are one job. Sweep "
                "once for each value, with a sweep_folder=… of its own, or measure finished runs again: "
                "unseen measure."
            )
    return list(found.values())


def _differing(first: Frozen, other: Frozen) -> list[str]:
    """In what two jobs of one key differ; what follows a place of images is not named beside it."""
    one, another = _settings(first), _settings(other)
    keys = [f"{key}." for key in {**one, **another} if one.get(key) != another.get(key)]
    names = [name for name in INCIDENTAL if any(key.startswith(f"{name}.") for key in keys)]
    return [name for name in names if name != "data.source"] or names


def _settings(frozen: Frozen) -> dict[str, str]:
    """Dotted key → value, without the job's own folder."""
    skipped = tuple(f"{key}." for key in OF_A_FOLDER)
    folder = str(frozen.job.folder)
    leaves = flattened(plain(frozen.config))
    return {key: str(value).replace(folder, "") for key, value in leaves if not f"{key}.".startswith(skipped)}


def planned(
    typed: Sequence[str], config_dir: str | None = None, config_name: str = "train"
) -> tuple[DictConfig, list[Cell]]:
    """Settings of the sweep itself, and its grid; see `sweep`.

    Raises:
        UsageError: what was typed cannot work.
    """
    own, of_jobs = divided(typed, "sweep")
    settings = own_settings(own, "sweep", config_dir)
    grid = [] if settings.get("sweep") is None else settings.sweep.grid
    return settings, cells(grid, of_jobs, config_name, config_dir)


def _launcher(settings: DictConfig) -> Any:
    with building():
        return instantiate(settings.launcher)


def _root(settings: DictConfig) -> Path:
    return Path(settings.sweep_folder).expanduser()
