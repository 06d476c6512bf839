"""A job of a sweep leaves a record however it ends."""

import pytest

from unseen.apps.job import _attempt
from unseen.config import run as module
from unseen.config.freeze import Freezer, thaw
from unseen.config.values import UsageError
from unseen.sweep.job import State


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), UsageError("no room")])
def test_a_job_that_fails_while_it_is_built_says_why(tiny_run, tmp_path, monkeypatch, error):
    def built(config, expected_key):
        raise error

    monkeypatch.setattr(module, "run", built)
    frozen = Freezer().freeze(tiny_run, tmp_path)
    frozen.save()
    job = frozen.job
    (job.folder / "record.json").write_text("of an attempt before")
    assert _attempt(job, thaw(job.folder)) != 0
    assert job.state == State.FAILED
    assert str(error) in job.error
    assert [attempt.error for attempt in job.attempts] == [job.error]
