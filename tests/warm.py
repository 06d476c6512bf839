"""Commands and jobs in processes that begin with the libraries imported, as importing them takes longer than
most of what the tests do. (How a sweep starts a job is tested in `tests/sweep/test_process.py`.)"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence

from unseen.sweep import process
from unseen.sweep.job import LOG, Job


def as_typed(words: Sequence[str], folder: str, outputs: str, environment: Mapping[str, str]) -> None:
    """`unseen …` in this process, which is given up to it; its streams go to files `outputs/1` and `/2`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(f"{outputs}/{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["unseen", *words]
    process.start = begin  # type: ignore[assignment]
    from unseen.__main__ import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()


class Begun:
    """What a sweep needs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def begin(job: Job, lock: str = "auto", environment: Mapping[str, str] | None = None) -> Begun:
    """As `unseen.sweep.process.start`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return Begun(pid)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)
    log = os.open(job.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, stream)
    os.environ.update(environment or {})
    sys.argv = ["unseen job", str(job.folder), f"lock={lock}"]
    code: int | str | None = 1
    try:
        from unseen.apps.job import main

        main()
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
