"""A sweep from what was typed to its end: cells, frozen jobs, the ledger's table, a launcher, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unseen.config.command_line import building, check_overrides, config_folder, searched
from unseen.config.freeze import Freezer, Frozen
from unseen.config.grid import cells
from unseen.config.values import UsageError
from unseen.sweep import ledger
from unseen.sweep.job import State
from unseen.sweep.lock import KINDS
from unseen.sweep.process import interruptible

STOPPED = 130
"""Status of a sweep that Ctrl-C stopped."""


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
    own, of_jobs = _divided(typed)
    settings = _settings(own, config_dir)
    launcher = _launcher(settings)
    frozen = _frozen(settings, of_jobs, config_dir, config_name)
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


def _divided(typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the sweep itself, and those of its jobs."""
    keys = set(OmegaConf.load(config_folder() / "sweep.yaml")) - {"defaults", "hydra"}
    keys |= {"sweep", "launcher"}
    own = [word for word in typed if _key(word).partition(".")[0] in keys]
    return own, [word for word in typed if word not in own]


def _key(word: str) -> str:
    try:
        return str(OverridesParser.create().parse_override(word).key_or_group)
    except HydraException:
        return ""  # refused with the jobs' overrides, in words


def _settings(own: Sequence[str], config_dir: str | None) -> DictConfig:
    check_overrides("sweep", own, config_dir)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            settings = compose("sweep", overrides=[*searched(config_dir), *own])
        except HydraException as error:
            raise UsageError(str(error)) from error
    if settings.lock not in KINDS:
        raise UsageError(f"lock={settings.lock}: choices are {', '.join(KINDS)}.")
    return settings


def _launcher(settings: DictConfig) -> Any:
    with building():
        return instantiate(settings.launcher)


def _root(settings: DictConfig) -> Path:
    return Path(settings.sweep_folder).expanduser()


def _frozen(
    settings: DictConfig, of_jobs: Sequence[str], config_dir: str | None, config_name: str
) -> list[Frozen]:
    """Every job of the grid, once."""
    grid = [] if settings.get("sweep") is None else settings.sweep.grid
    freezer = Freezer(config_name, config_dir)
    found: dict[str, Frozen] = {}
    for cell in cells(grid, of_jobs, config_name, config_dir):
        one = freezer.freeze(cell.overrides, _root(settings), cell.name or None)
        found.setdefault(one.job.key, one)
    return list(found.values())
