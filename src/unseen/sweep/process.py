"""A job as a process of its own, so that a kill, a crash or a leak never touches the other jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from unseen.sweep.job import LOG, Job

PATIENCE = 60.0
"""Seconds that a job has to write a checkpoint when it is asked to stop."""


def command(job: Job, lock: str = "auto") -> list[str]:
    """What runs, or goes on with, a frozen job."""
    return [sys.executable, "-m", "unseen.apps.job", str(job.folder), f"lock={lock}"]


def start(
    job: Job, lock: str = "auto", environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the process of a frozen job; what it prints goes to the end of its log.

    Args:
        job: whose folder holds a frozen config.
        lock: see `unseen.sweep.lock.locked`.
        environment: added to this process's.
    """
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command(job, lock),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            # Of its own, so that Ctrl-C reaches it once, from us.
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Ask a job to stop: it ends its step and writes a checkpoint; after a while it is killed."""
    if process.poll() is not None:
        return
    process.terminate()  # to the job alone, which stops its own helpers
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a job and its helpers at once."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
