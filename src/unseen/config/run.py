"""One run from its config to its record, with what it refuses said in words."""

from __future__ import annotations

import errno
import shlex

from omegaconf import DictConfig

from unseen.config.build import build
from unseen.config.command_line import building
from unseen.config.quoting import quoted
from unseen.config.values import UsageError
from unseen.data.images import ImageError
from unseen.data.maps import MapsError
from unseen.retrieval.engine.vectors import NotFiniteError
from unseen.tracking.record import RunRecord
from unseen.tracking.run_folder import LAST
from unseen.training.divergence import DivergedError
from unseen.training.progress import quiet
from unseen.workflow.run import execute

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or of a user's share of one, that has no room."""


def run(config: DictConfig, expected_key: str = "") -> RunRecord | None:
    """Build and execute.

    Args:
        config: as for `unseen.config.build.build`.
        expected_key: with which the job key must begin.

    Returns:
        The record; none in the helping processes of a distributed run.

    Raises:
        UsageError: a part refuses what it was given, an image cannot be read, feature maps cannot be kept,
            training diverges, the disk is full, or the run would be another one than the one that was
            expected.
    """
    try:
        with quiet():
            with building():
                made = build(config)
            if not made.job_key.startswith(expected_key):
                raise UsageError(
                    f"{made.folder}: the data, the initial weights or this package changed since the job was "
                    f"frozen (key {expected_key}…, now {made.job_key}). Run the sweep again for new jobs."
                )
            return execute(made)
    except (DivergedError, NotFiniteError, MapsError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UsageError(
            f"The run stopped: {error.strerror} (it writes to {config.run_folder}). Make room, then go on: "
            f"{shlex.quote(f'hydra.run.dir={quoted(config.run_folder)}')} resume_from={LAST}"
        ) from error
    except ImageError as error:
        # A loading process puts its traceback before the message.
        message = (
            str(error).splitlines()[-1].removeprefix(f"{ImageError.__module__}.{type(error).__name__}: ")
        )
        raise UsageError(message) from error
