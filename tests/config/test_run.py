"""What ends a run for reasons of the machine or the data is said in words."""

import errno
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from unseen.config import run as module
from unseen.config.values import UsageError
from unseen.retrieval import evaluate


@pytest.fixture
def ends(monkeypatch):
    """`ends(work)`: a run whose work is this, in `runs/birds` or another folder."""

    def begin(work, folder="runs/birds"):
        monkeypatch.setattr(module, "build", lambda config: SimpleNamespace(job_key="k"))
        monkeypatch.setattr(module, "execute", lambda run: work())
        module.run(OmegaConf.create({"trainer": {}, "run_folder": folder}))

    return begin


def failing(error):
    def work():
        raise error

    return work


def test_a_full_disk_and_how_to_go_on_are_named(ends):
    words = r"No space left on device.*hydra\.run\.dir=runs/birds resume_from=last"
    with pytest.raises(UsageError, match=words):
        ends(failing(OSError(errno.ENOSPC, "No space left on device")))
    words = r"""'hydra\.run\.dir='"'"'runs/lr=1'"'"'' resume_from=last"""
    with pytest.raises(UsageError, match=words):
        ends(failing(OSError(errno.ENOSPC, "No space left on device")), "runs/lr=1")
    with pytest.raises(OSError, match="Input/output error"):
        ends(failing(OSError(errno.EIO, "Input/output error")))


def test_embeddings_of_weights_that_diverged_in_the_last_step_are_no_traceback(ends):
    with pytest.raises(UsageError, match=r"2 of 2 rows hold NaN.*a training that diverged"):
        ends(lambda: evaluate(torch.full((2, 4), torch.nan), torch.zeros(2, dtype=torch.int64)))
