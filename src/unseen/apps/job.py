"""Run a job that a sweep froze, or go on with it: unseen job <folder>."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from pathlib import Path

from omegaconf import DictConfig, open_dict

from unseen.config.command_line import explained
from unseen.config.folder import is_helper
from unseen.config.freeze import thaw
from unseen.config.values import UsageError, check_devices
from unseen.sweep.job import Attempt, Job, State
from unseen.sweep.lock import BUSY, BusyError, locked
from unseen.tracking.record import RunRecord

STOPPED = 143
"""Status of a job that was asked to stop, as of one that SIGTERM ends."""
HELP = """unseen job <folder>: run the job that a sweep froze in this folder (job.yaml), or go on with it.

  lock=auto|kernel|lease   how other processes are kept from it; auto: what its file system needs"""


def main() -> None:
    """Leave with 0 when the job is done, 75 when another process is at it, else with the run's status."""
    words = sys.argv[1:]
    # Slurm warns every process of a job; submitit, which started this one, then asks it to stop.
    if hasattr(signal, "SIGUSR2"):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if "-h" in words or "--help" in words:
        print(HELP)
        return
    with explained():
        folders = [word for word in words if not word.startswith("lock=")]
        lock = next((word.removeprefix("lock=") for word in words if word.startswith("lock=")), "auto")
        if len(folders) != 1:
            raise UsageError(f"Name one folder of a job. {HELP}")
        folder = Path(folders[0]).resolve()
        config = thaw(folder)
    job = Job(folder.name, "", folder)
    if is_helper():
        raise SystemExit(_run(job, config))
    try:
        with locked(folder, lock):
            status = 0 if job.outcome == State.DONE else _attempt(job, config)
    except BusyError as error:
        print(f"error: {error}", file=sys.stderr)
        status = BUSY
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    raise SystemExit(status)


def _attempt(job: Job, config: DictConfig) -> int:
    """One attempt, written down; its record takes the place of the last attempt's, whose error is kept."""
    started = time.perf_counter()
    (job.folder / "record.json").unlink(missing_ok=True)
    status, error = "interrupted", None
    try:
        code = _run(job, config)
        status = "success"
    except UsageError as refused:
        print(f"error: {refused}", file=sys.stderr)
        code, status, error = 2, "failed", str(refused)
        _record_failure(job, config, error)
    except (KeyboardInterrupt, SystemExit):  # Lightning leaves by one on SIGTERM
        code = STOPPED
    except Exception as failure:
        traceback.print_exc()
        code, status, error = 1, "failed", f"{type(failure).__name__}: {failure}"
        _record_failure(job, config, error)
    finally:
        job.note(Attempt(status, round(time.perf_counter() - started, 1), error))
    return code


def _run(job: Job, config: DictConfig) -> int:
    check_devices(config.trainer)
    # Here, because a job that is done, or that another process has, need not wait for seconds of imports.
    from unseen.config.run import run
    from unseen.training.checkpoints import newest_whole

    if (checkpoint := newest_whole(job.checkpoints)) is not None:
        with open_dict(config):
            config.resume_from = str(checkpoint)
        print(f"Goes on from {checkpoint}.", flush=True)
    run(config, expected_key=job.folder.name.rpartition("_")[2])
    return 0


def _record_failure(job: Job, config: DictConfig, error: str) -> None:
    """A run that could not be built leaves a record too."""
    if (job.folder / "record.json").is_file():
        return
    from unseen.config.identity import plain

    content = plain(config)
    RunRecord(
        choices={str(group): str(choice) for group, choice in content["choices"].items() if "/" not in group},
        seed=content["seed"],
        config=content,
        split="",
        manifest="",
        metrics={},
        seconds={},
        overrides=[str(override) for override in content["overrides"]],
        status="failed",
        error=error,
    ).save(job.folder / "record.json")


if __name__ == "__main__":
    main()
