"""A grid: overrides with several values each → the overrides of every job, in Hydra's own notation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from unseen.config.command_line import check_overrides, config_folder, unreadable
from unseen.config.values import UsageError

NOT_OF_A_JOB = {
    "hydra/launcher": "Name one of ours: launcher=sequential, joblib, slurm or ray. They run frozen jobs "
    "and know what is done.",
    "hydra/sweeper": "Hyper-parameters are sought by `unseen tune`.",
    "hydra.sweep": "Jobs lie in sweep_folder=<folder>, each under its own name.",
    "hydra": "A sweep composes and runs its jobs by itself.",
    "run_folder": "Each job of a sweep has its own folder, in sweep_folder=<folder>.",
    "resume_from": "A job of a sweep goes on from its own checkpoint, by itself.",
}
"""Keys that have no place in a sweep → what to do instead."""


class Cell(NamedTuple):
    """One place of a grid.

    Args:
        name: the overrides that differ over the grid; empty where there is one job.
        overrides: all, each of one value.
    """

    name: str
    overrides: list[str]


def cells(
    grid: Sequence[str], typed: Sequence[str], config_name: str = "train", config_dir: str | None = None
) -> list[Cell]:
    """Every combination; the last key varies fastest.

    Args:
        grid: overrides, such as `seed=0,1,2`; ranges and globs are Hydra's.
        typed: likewise; they take the place of the grid's, or are added to it.
        config_name: primary config of a job.
        config_dir: a user's own groups.

    Raises:
        UsageError: an override cannot be read, has no place in a sweep, or names what does not exist.
    """
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        axes = {}
        for override in (parse(word, "sweep") for word in (*grid, *typed)):
            axes[override.key_or_group, override.package] = _axis(override)
    check_overrides(config_name, [_joined(values) for values in axes.values()], config_dir)
    varying = {values for values in axes.values() if len(values) > 1}
    found = []
    for combination in itertools.product(*axes.values()):
        differing = [
            override for values, override in zip(axes.values(), combination, strict=True) if values in varying
        ]
        found.append(Cell(" ".join(differing), list(combination)))
    return found


def parse(word: str, place: str) -> Override:
    """An override of jobs; globs need the configuration folder, so Hydra must be initialized.

    Args:
        word: as typed.
        place: `sweep` or `search`, for what is said of keys that have no place in it.

    Raises:
        UsageError: it cannot be read, or has no place there.
    """
    loader = GlobalHydra.instance().config_loader()
    try:
        override = OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except HydraException as error:
        raise unreadable(word, error) from error
    for key, remedy in NOT_OF_A_JOB.items():
        if override.key_or_group == key or override.key_or_group.startswith((f"{key}.", f"{key}/")):
            raise UsageError(f"{word}: has no place in a {place}. {remedy}")
    return override


def listed(override: Override) -> tuple[str, ...]:
    """The values of a discrete sweep `a,b,c`, ranges and globs written out; `_files` are others' parts.

    Raises:
        UsageError: there is none.
    """
    values = tuple(value for value in override.sweep_string_iterator() if not value.startswith("_"))
    if not values:
        raise UsageError(f"{override.input_line}: gives no value.")
    return values


def _axis(override: Override) -> tuple[str, ...]:
    """The values of one key, each as an override of its own."""
    if not override.is_sweep_override():
        return (override.input_line or "",)
    if not override.is_discrete_sweep():
        raise UsageError(
            f"{override.input_line}: an interval has no end of values. List them (key=1,2,3), give "
            "range(start,stop,step), or seek the best by `unseen tune`."
        )
    key = override.get_key_element()
    return tuple(f"{key}={value}" for value in listed(override))


def _joined(values: Sequence[str]) -> str:
    """As one override again, globs and ranges written out."""
    key = values[0].partition("=")[0]
    return f"{key}={','.join(value.partition('=')[2] for value in values)}" if len(values) > 1 else values[0]
