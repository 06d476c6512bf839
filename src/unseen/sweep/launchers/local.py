"""This machine: one job after another, or several at once with the cores divided among them."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Sequence
from contextlib import nullcontext

from joblib import Parallel, delayed
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from unseen.data.images import available_cores
from unseen.sweep import ledger
from unseen.sweep.job import LOG, Job, State
from unseen.sweep.ledger import Outcome
from unseen.sweep.lock import BUSY
from unseen.sweep.process import run
from unseen.tracking.table import duration

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Sequential:
    """One job after another."""

    at_once = 1

    def __call__(self, jobs: Sequence[Job], lock: str, console: Console) -> list[Outcome]:
        """Run them; a job that fails does not end the others."""
        return [
            self._run(job, lock, console, f"{number}/{len(jobs)}") for number, job in enumerate(jobs, start=1)
        ]

    def _run(self, job: Job, lock: str, console: Console, number: str) -> Outcome:
        started = time.monotonic()
        shown = f"{number} {escape(job.name)}"
        with console.status(shown) if console.is_terminal else nullcontext() as status:

            def look() -> None:
                if isinstance(status, Status):
                    status.update(f"{shown} {escape(last_epoch(job))}")

            code = run(job, lock, look=look)
        return told(console, number, Outcome(job, code, time.monotonic() - started))


class Joblib:
    """Several jobs at once.

    Args:
        jobs: at once.
        gpus: of each place, as `CUDA_VISIBLE_DEVICES` has them: `[0, 1]`, or `['0,1', '2,3']` for two
            a job; none leaves to each job what it finds.

    Raises:
        ValueError: `jobs` is below 1, or there are fewer GPUs than jobs.
    """

    def __init__(self, jobs: int, gpus: Sequence[int | str] | None = None) -> None:
        if not isinstance(jobs, int) or jobs < 1:
            raise ValueError(f"launcher.jobs={jobs}: wanted a whole number from 1.")
        if gpus is not None and len(gpus) < jobs:
            raise ValueError(
                f"launcher.jobs={jobs}: launcher.gpus has {len(gpus)} entries. Name one for each."
            )
        self.at_once = jobs
        self.gpus = None if gpus is None else [str(one) for one in gpus]

    def __call__(self, jobs: Sequence[Job], lock: str, console: Console) -> list[Outcome]:
        """Run them; a job that fails does not end the others."""
        places: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(self.at_once):
            places.put(place)

        def one(number: int, job: Job) -> Outcome:
            place = places.get()
            started = time.monotonic()
            try:
                code = run(job, lock, self.environment(place))
            finally:
                places.put(place)
            return told(console, f"{number}/{len(jobs)}", Outcome(job, code, time.monotonic() - started))

        # Threads: each only waits for the process that it started.
        parallel = Parallel(n_jobs=self.at_once, backend="threading", batch_size=1, pre_dispatch="all")
        return list(parallel(delayed(one)(number, job) for number, job in enumerate(jobs, start=1)))

    def environment(self, place: int) -> dict[str, str]:
        """Of the job in one of the places: its share of the threads, and its GPUs."""
        shared = shared_threads(self.at_once)
        return shared if self.gpus is None else {**shared, "CUDA_VISIBLE_DEVICES": self.gpus[place]}


def shared_threads(at_once: int) -> dict[str, str]:
    """Environment of a job that has its share of the cores."""
    return dict.fromkeys(THREADS, str(max(1, available_cores() // at_once)))


def last_epoch(job: Job) -> str:
    """What a running job said last of an epoch."""
    with (job.folder / LOG).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("Epoch ")), "")


def told(console: Console, number: str, outcome: Outcome) -> Outcome:
    """One line on the terminal for a job that came to its end."""
    job, code = outcome.job, outcome.status
    if code is None:
        return outcome
    took = duration(outcome.seconds)
    if code == 0:
        text = f"[green]done[/] in {took}: {ledger.result(job)}"
    elif code == BUSY:
        text = "[cyan]running[/] elsewhere"
    elif job.outcome == State.FAILED:
        text = f"[red]failed[/] after {took}: {escape(ledger.first_line(job.error))}"
    else:
        text = f"[yellow]ended[/] after {took} with status {code}"
    console.print(f"{number} {escape(job.name)} {text}", soft_wrap=True, highlight=False)
    return outcome
