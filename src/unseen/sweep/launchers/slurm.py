"""Slurm, by submitit: submit and leave. A job that is preempted or out of time is queued again, to go on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from unseen.files import replacing
from unseen.sweep.job import Job
from unseen.sweep.ledger import Outcome
from unseen.sweep.process import start, stop, wait

SUBMITTED = "submitted.json"
"""In a job's folder: as what it was queued."""
# With this name Lightning takes itself to be alone on the node: it starts its own helpers for several GPUs,
# listens for no signal of Slurm's and requeues nothing; submitit does.
ALONE = {"SLURM_JOB_NAME": "interactive"}


class Slurm:
    """Each job is one of Slurm's, on one node.

    Args:
        cluster: `slurm`, or `local` for processes of this machine that behave like Slurm's.
        parameters: of `submitit.AutoExecutor.update_parameters`; those that are none are left out.

    Raises:
        ImportError: submitit is not installed.
    """

    at_once = None

    def __init__(self, cluster: str, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("submitit is not installed: pip install 'unseen-dml[slurm]'") from error
        self.submitit: Any = submitit
        self.cluster = cluster
        self.parameters = {name: value for name, value in parameters.items() if value is not None}

    def __call__(self, jobs: Sequence[Job], lock: str, console: Console) -> list[Outcome]:
        """Submit those that are not queued yet, as one array."""
        waiting = []
        for job in jobs:
            if (queued := self._queued(job)) is None:
                waiting.append(job)
            else:
                console.print(f"{escape(job.name)} is queued already, as {queued}", soft_wrap=True)
        if not waiting:
            return []
        folder = waiting[0].folder.parent / ".submitit"
        executor = self.submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        with executor.batch():
            submitted = [executor.submit(Requeued(job, lock)) for job in waiting]
        for job, one in zip(waiting, submitted, strict=True):
            with replacing(job.folder / SUBMITTED) as temporary:
                temporary.write_text(json.dumps({"id": one.job_id, "folder": str(folder)}), encoding="utf-8")
            console.print(f"{escape(job.name)} is queued as {one.job_id}", soft_wrap=True)
        return [Outcome(job, None) for job in waiting]

    def _queued(self, job: Job) -> str | None:
        """As what a job waits or runs; none if it does neither."""
        path = job.folder / SUBMITTED
        if self.cluster != "slurm" or not path.is_file():
            return None
        about = json.loads(path.read_text(encoding="utf-8"))
        one = self.submitit.SlurmJob(about["folder"], about["id"])
        return None if one.done() else str(about["id"])


class Requeued:
    """What submitit runs on a node: the job's process, asked to stop before the job is queued again.

    Args:
        job: frozen.
        lock: see `unseen.sweep.lock.locked`.
    """

    def __init__(self, job: Job, lock: str) -> None:
        self.job = job
        self.lock = lock
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it, or go on with it; its state is in its folder, whatever this gives."""
        self.process = start(self.job, self.lock, ALONE if "SLURM_JOB_ID" in os.environ else None)
        return wait(self.process)

    def checkpoint(self) -> Any:
        """Called by submitit when time is up, or when the job is preempted."""
        import submitit

        if self.process is not None:
            stop(self.process)
        return submitit.helpers.DelayedSubmission(Requeued(self.job, self.lock))
