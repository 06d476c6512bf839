"""The folder of a run: it belongs to one run, and one process at a time is at it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from unseen.config.values import UsageError
from unseen.sweep.lock import BusyError, holder, locked
from unseen.tracking.run_folder import CHECKPOINTS, LAST, checkpoints, traces

TYPED = "hydra.run.dir"
"""What names the folder on the command line."""


def is_helper() -> bool:
    """Whether this is not the first process of a distributed run, which holds the folder for all."""
    return any(int(os.environ.get(name) or 0) for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def check_folder(config: DictConfig, named: str = TYPED) -> None:
    """Refuse a folder that holds another run, that a process is at, or that cannot be written.

    Args:
        config: resolved, with `run_folder` and `resume_from`.
        named: what the user names the folder by.

    Raises:
        UsageError: naming the folder and what to type.
    """
    if is_helper():
        return
    folder = Path(config.run_folder)
    _check_writable(folder, named)
    if (other := holder(folder)) is not None:
        raise _busy(f"{folder}: {other} is at it.", named)
    if not (found := traces(folder)) or _goes_on(folder, config.resume_from):
        return
    remedy = f"To go on with it: resume_from={LAST}" if checkpoints(folder) else "Remove it"
    raise UsageError(
        f"The folder '{folder}' belongs to a run already (it holds {', '.join(found)}). {remedy}, "
        f"or name another folder: {named}=<folder>"
    )


@contextmanager
def held(folder: Path, named: str = TYPED) -> Iterator[None]:
    """Be the only run in a folder.

    Args:
        folder: of the run.
        named: what the user names it by.

    Raises:
        UsageError: another process is at it, or it cannot be written.
    """
    if is_helper():
        yield
        return
    _check_writable(folder, named)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    except BusyError as error:
        raise _busy(str(error), named) from error


def _busy(words: str, named: str) -> UsageError:
    return UsageError(
        f"{words} Two runs cannot share a folder: wait for it to end. Name another folder: {named}=<folder>"
    )


def _check_writable(folder: Path, named: str) -> None:
    """By a file that has no name: what permissions say is not all that can be in the way."""
    remedy = f"Name another folder: {named}=<folder>"
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise UsageError(f"The run cannot write to '{folder}': '{place}' is a file. {remedy}")
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b".")
    except OSError as error:
        raise UsageError(f"The run cannot write to '{folder}': {error.strerror}. {remedy}") from error


def _goes_on(folder: Path, resume_from: str | None) -> bool:
    if resume_from is None:
        return False
    if resume_from == LAST:
        return bool(checkpoints(folder))
    return Path(resume_from).expanduser().resolve().parent == (folder / CHECKPOINTS).resolve()
