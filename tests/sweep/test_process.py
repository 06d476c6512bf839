"""Processes of jobs: several at once on their share of the machine, and stopped as they should be."""

import os
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from unseen.sweep import process
from unseen.sweep.launchers.local import Joblib, Sequential

STANDS_IN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath("asked").touch(), sys.exit(143)))
if folder.name == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder.joinpath("began").write_text(f"{time.time()} {os.environ.get('OMP_NUM_THREADS')} "
                                    f"{os.environ.get('CUDA_VISIBLE_DEVICES')}")
time.sleep(float(sys.argv[2]))
folder.joinpath("ended").write_text(str(time.time()))
sys.exit(folder.name == "bad")
"""


@pytest.fixture
def takes(monkeypatch):
    """`takes(seconds)`: jobs are this script, which takes so long."""

    def patch(seconds):
        def command(job, lock):
            return [sys.executable, "-c", STANDS_IN, str(job.folder), str(seconds)]

        monkeypatch.setattr(process, "command", command)

    return patch


def times(job):
    return float((job.folder / "began").read_text().split()[0]), float((job.folder / "ended").read_text())


def quietly(launcher, jobs):
    return launcher(jobs, "auto", Console(quiet=True))


def test_one_after_another_and_one_that_fails_ends_no_other(a_job, takes):
    takes(0.1)
    jobs = [a_job(name, "failed" if name == "bad" else "success") for name in ("bad", "good", "last")]
    assert [outcome.status for outcome in quietly(Sequential(), jobs)] == [1, 0, 0]
    assert times(jobs[0])[1] <= times(jobs[1])[0]


def test_two_at_once_share_cores_and_gpus(a_job, takes):
    takes(0.7)
    jobs = [a_job(str(number), "success") for number in range(4)]
    launcher = Joblib(2, gpus=["0,1", "2,3"])
    assert [outcome.status for outcome in quietly(launcher, jobs)] == [0] * 4
    spans = [times(job) for job in jobs]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2
    cores = len(os.sched_getaffinity(0))
    found = {tuple((job.folder / "began").read_text().split()[1:]) for job in jobs}
    assert found == {(str(max(1, cores // 2)), gpus) for gpus in ("0,1", "2,3")}


@pytest.mark.parametrize("arguments", [(0,), (2, [0])])
def test_places_that_are_not_there_are_refused(arguments):
    with pytest.raises(ValueError, match=r"launcher\.jobs="):
        Joblib(*arguments)


@pytest.mark.parametrize("launcher", [Sequential(), Joblib(2)], ids=["sequential", "joblib"])
def test_ctrl_c_asks_what_runs_to_stop_and_starts_no_other(a_job, takes, launcher):
    takes(60)
    jobs = [a_job(name) for name in ("first", "second", "third")]

    def interrupt():
        while not all((job.folder / "began").exists() for job in jobs[: launcher.at_once]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with process.interruptible() as stopped:
        outcomes = quietly(launcher, jobs)
    assert stopped.is_set()
    statuses = [outcome.status for outcome in outcomes]
    assert statuses == [143] * launcher.at_once + [None] * (3 - launcher.at_once)
    assert (jobs[0].folder / "asked").exists()
    assert not (jobs[2].folder / "began").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert not process.was_stopped(), "the next sweep starts unstopped"


def test_a_job_that_does_not_stop_is_killed(a_job, takes):
    takes(60)
    job = a_job("stubborn")
    started = process.start(job)
    while not (job.folder / "began").exists():
        time.sleep(0.05)
    process.stop(started, patience=0.5)
    assert started.wait(10) == -signal.SIGKILL
