"""A job as a process of its own, so that a kill, a crash or a leak never touches the other jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

from unseen.sweep.job import LOG, Job

PATIENCE = 60.0
"""Seconds that a job has to end its step and write a checkpoint when it is asked to stop."""
STOPPED = 130
"""Status with which a command leaves that Ctrl-C stopped."""
LOOKS = 0.2
"""Seconds between two looks at a process."""

_stopped = threading.Event()
_running: set[subprocess.Popen[bytes]] = set()


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
        # This interpreter, on a folder, and no shell.
        return subprocess.Popen(  # noqa: S603
            command(job, lock),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            # Of its own, so that Ctrl-C reaches it once, from us.
            start_new_session=True,
        )


def wait(process: subprocess.Popen[bytes], look: Callable[[], None] | None = None) -> int:
    """The status with which a job leaves; `look` is called now and then meanwhile."""
    # Not `process.wait`, inside which the handler of a signal could not ask for the status.
    while (status := process.poll()) is None:
        if look is not None:
            look()
        time.sleep(LOOKS)
    return status


def run(
    job: Job,
    lock: str = "auto",
    environment: Mapping[str, str] | None = None,
    look: Callable[[], None] | None = None,
) -> int | None:
    """Run a job to its end, unless the sweep was stopped (see `interruptible`).

    Returns:
        Its status; none where it was not started.
    """
    if _stopped.is_set():
        return None
    process = start(job, lock, environment)
    _running.add(process)
    try:
        if _stopped.is_set():
            stop(process)  # asked to while the process was started, when it was not among those running
        return wait(process, look)
    except BaseException:
        stop(process)
        raise
    finally:
        _running.discard(process)


def stop(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Ask a job to stop: it ends its step and writes a checkpoint; after a while it is killed."""
    process.terminate()  # the job alone, which stops its own helpers
    ends = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(LOOKS)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a job and its helpers at once."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def was_stopped() -> bool:
    """Whether this sweep was asked to stop."""
    return _stopped.is_set()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within it, Ctrl-C (or SIGTERM) asks the jobs that run to stop, and starts no other; twice kills them.

    Gives:
        an event that is set when the sweep was stopped.
    """
    global _stopped
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {kind: signal.signal(kind, _on_signal) for kind in kinds}
    try:
        yield _stopped
    finally:
        _stopped = threading.Event()  # the caller keeps the old one; the next sweep starts unstopped
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _on_signal(kind: int, frame: FrameType | None) -> None:
    again = _stopped.is_set()
    _stopped.set()
    asked = list(_running)
    for process in asked:
        if again:
            kill(process)
        else:
            process.terminate()
    if not again:
        timer = threading.Timer(PATIENCE, _kill_those_left, [asked])
        timer.daemon = True
        timer.start()


def _kill_those_left(asked: list[subprocess.Popen[bytes]]) -> None:
    for process in asked:
        if process.poll() is None:
            kill(process)
