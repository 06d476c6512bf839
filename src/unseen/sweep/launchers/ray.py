"""A Ray cluster whose nodes share the sweep's folder; jobs go to wherever there are cores and GPUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from unseen.sweep.job import Job
from unseen.sweep.launchers.local import told
from unseen.sweep.ledger import Outcome
from unseen.sweep.process import run, was_stopped


class Ray:
    """Waits for jobs that Ray places.

    Args:
        address: of the cluster: `auto` for the one that this machine is of, `ray://host:10001`; none starts
            one here, for as long as the sweep lasts.
        cpus: of each job; threads follow.
        gpus: of each job.

    Raises:
        ImportError: Ray is not installed.
    """

    at_once = None

    def __init__(self, address: str | None, cpus: float, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("Ray is not installed: pip install 'unseen-dml[ray]'") from error
        self.ray: Any = ray
        self.address = address
        self.resources = {"num_cpus": cpus, "num_gpus": gpus}

    def __call__(self, jobs: Sequence[Job], lock: str, console: Console) -> list[Outcome]:
        """Run them; a job that fails, or whose node dies, does not end the others."""
        ours = not self.ray.is_initialized()
        if ours:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="warning")
        try:
            return self._run(jobs, lock, console)
        finally:
            if ours:
                self.ray.shutdown()

    def _run(self, jobs: Sequence[Job], lock: str, console: Console) -> list[Outcome]:
        # A node that dies gives its job back; another one goes on with it.
        remote = self.ray.remote(**self.resources, max_retries=3)(_on_a_node)
        pending = {remote.remote(job, lock, str(Path.cwd())): job for job in jobs}
        outcomes: list[Outcome] = []
        is_cancelled = False
        while pending:
            if was_stopped() and not is_cancelled:
                is_cancelled = True
                for reference in pending:
                    self.ray.cancel(reference)
            ready, _ = self.ray.wait(list(pending), timeout=1)
            for reference in ready:
                outcome = self._outcome(pending.pop(reference), reference)
                outcomes.append(told(console, f"{len(outcomes) + 1}/{len(jobs)}", outcome))
        return outcomes

    def _outcome(self, job: Job, reference: Any) -> Outcome:
        try:
            return Outcome(job, *self.ray.get(reference))
        except self.ray.exceptions.TaskCancelledError:
            return Outcome(job, None)
        except self.ray.exceptions.RayError:  # its node died, again and again
            return Outcome(job, 1)


def _on_a_node(job: Job, lock: str, folder: str) -> tuple[int | None, float]:
    """Status and seconds; a job that is cancelled is asked to stop."""
    import os

    os.chdir(folder)
    started = time.monotonic()
    return run(job, lock), time.monotonic() - started
