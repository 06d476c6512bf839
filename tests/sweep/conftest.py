"""Jobs whose record says whatever a test wants."""

import pytest

from unseen.sweep.job import Attempt, Job
from unseen.tracking.record import RunRecord


@pytest.fixture
def a_job(tmp_path):
    """`a_job(name, status=…, error=…, seconds=…)`: a job with a record of this status; none without one."""

    def make(name, status=None, error=None, seconds=None):
        folder = tmp_path / name
        folder.mkdir()
        job = Job(name, "0" * 16, folder)
        if status is not None:
            RunRecord(
                choices={}, seed=0, config={}, split="", manifest="", seconds={}, status=status, error=error,
                metrics={"unseen": {"recall_at_1": 0.5}} if status == "success" else {},
            ).save(folder / "record.json")  # fmt: skip
        if seconds is not None:
            job.note(Attempt(status or "interrupted", seconds))
        return job

    return make
