"""The runs of a comparison: every record below some folders, read once."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unseen.tracking.record import RunRecord, essential, flattened

RECORD = "record.json"
FROZEN = "job.yaml"
"""The config of a sweep's job; without a record beside it the job has not ended."""
PYTHON_ONLY = "collection"
"""The choice of `data` of a run that was started from Python, which no command line can repeat."""
NOTHING = "none"
"""Value of a group that was chosen to be empty, and of a key that a run does not have."""


@dataclass(frozen=True)
class Run:
    """One run that left a record.

    Args:
        folder: of the record, and of all else that the run wrote.
        record: what it holds.
    """

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def seed(self) -> int:
        """Of training."""
        return self.record.seed

    @property
    def split(self) -> str:
        """Fingerprint of the split (hex)."""
        return self.record.split

    def has(self, key: str) -> bool:
        """Whether there is such a group or dotted key."""
        return key in self.record.choices or key in self._keys

    def value(self, key: str) -> str:
        """Of a group (the choice) or a dotted key of the config, as text; `none` where there is neither."""
        return as_text(self.record.choices[key] if key in self.record.choices else self._keys.get(key))

    def metric(self, split: str, metric: str) -> float:
        """Of the record; NaN where it has none."""
        return self.record.metrics.get(split, {}).get(metric, math.nan)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted key → value of all that changes what is trained or how it is measured, but for the seed."""
        measured = {
            key: value for key, value in self._keys.items() if key.startswith(("metrics.", "evaluation."))
        }
        weights = self.record.weights and self.record.weights[:8]
        found = essential(self.record.config) | measured | {"initial weights": weights}
        found.pop("seed", None)
        return found

    @cached_property
    def _keys(self) -> dict[str, Any]:
        return dict(flattened(self.record.config))


@dataclass(frozen=True)
class Unreadable:
    """A file that is called like a record and is none that this version reads.

    Args:
        path: of the file.
        reason: in words.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Runs:
    """All that was found, in the order of the folders' paths.

    Args:
        finished: with results.
        unfinished: failed or interrupted; their records say why.
        unreadable: broken, or of another schema.
        waiting: folders of a sweep's jobs that have no record yet: to do, running, or killed.
    """

    finished: tuple[Run, ...]
    unfinished: tuple[Run, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    waiting: tuple[Path, ...] = ()


def load_runs(folders: Path | str | Iterable[Path | str]) -> Runs:
    """Read every `record.json` in and below the folders; a run below two of them counts once.

    Args:
        folders: one or several.

    Raises:
        ValueError: one of the folders does not exist.
    """
    given = [folders] if isinstance(folders, Path | str) else folders
    found: list[Run] = []
    unreadable: list[Unreadable] = []
    ended, waiting = _run_folders([Path(folder) for folder in given])
    for folder in ended:
        try:
            found.append(Run(folder, RunRecord.load(folder / RECORD)))
        except (ValueError, OSError) as error:
            unreadable.append(Unreadable(folder / RECORD, str(error)))
    finished = tuple(run for run in found if run.record.status == "success")
    unfinished = tuple(run for run in found if run.record.status != "success")
    return Runs(finished, unfinished, tuple(unreadable), tuple(waiting))


def as_text(value: Any) -> str:
    """A value of a config as people type it."""
    return NOTHING if value is None or value == "None" else str(value)


def command(run: Run) -> str | None:
    """What starts the run again; none for a run that Python started with objects of its own."""
    if run.record.choices.get("data") == PYTHON_ONLY:
        return None
    # A choice that is a default of this version may be none of the next: the seed is always said.
    typed = [override for override in run.record.overrides if not override.startswith("run_folder=")]
    if not any(override.lstrip("+").startswith("seed=") for override in typed):
        typed.append(f"seed={run.seed}")
    return shlex.join(["unseen", "train", *typed])


def differing_keys(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Groups and dotted keys in which the runs differ, and their values; the seed is none of them.

    Keys below a group whose choice differs are left out: the group stands for them.
    """
    groups = {name for run in runs for name in run.record.choices}
    values = {group: sorted({run.value(group) for run in runs}) for group in sorted(groups)}
    differing = {group: found for group, found in values.items() if len(found) > 1}
    keys = {key for run in runs for key in run.settings if key.split(".")[0] not in differing}
    for key in sorted(keys):
        found = sorted({as_text(run.settings.get(key)) for run in runs})
        if len(found) > 1:
            differing[key] = found
    return differing


def _run_folders(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders with a record, and those with a job that has none; each once, in the order of their paths."""
    ended: dict[Path, Path] = {}
    waiting: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"'{folder}' is not a folder. Wanted a folder of runs, such as runs/.")
        for name, _, files in os.walk(folder):
            path = Path(name)
            if RECORD in files:
                ended[path.resolve()] = path
            elif FROZEN in files:
                waiting[path.resolve()] = path
    return sorted(ended.values()), sorted(waiting.values())
