"""A signal ends a run after its step, with a record and a checkpoint; NaN ends it at once."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.training.divergence import DivergedError, StopsAtNaN
from unseen.training.progress import quiet
from unseen.workflow.run import execute

SMALL = [
    "trainer.max_epochs=2", "sampler.classes_per_batch=4", "sampler.images_per_class=2", "pictures=false",
    "evaluation.probe_classes=0", "evaluation.draws=1", "evaluation.resamples=10",
]  # fmt: skip


class Signals(Callback):
    """Sends a signal within a step."""

    def __init__(self, kind):
        self.kind = kind

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 1:
            signal.raise_signal(self.kind)


class SignalsAll(Signals):
    """As a scheduler: to all processes of the job, not by one of them."""

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == 1:
            words = ["kill", f"-{int(self.kind)}", "--", f"-{os.getpgrp()}"]
            subprocess.run(words, check=True, start_new_session=True)


class Spoils(Callback):
    """Makes a gradient NaN within a step."""

    def on_after_backward(self, trainer, learner):
        if trainer.global_step == 4:
            next(p for p in learner.parameters() if p.grad is not None).grad.fill_(torch.nan)


def start_a_thread():
    """As packages do that report from each process."""
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def ended(tiny_run, folder, callback, kind):
    run = build(load_config([*tiny_run, *SMALL], run_folder=str(folder)))
    run.trainer.callbacks.insert(0, callback)
    with quiet(), pytest.raises(kind) as error:
        execute(run)
    return error.value, json.loads((folder / "record.json").read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_its_step(tiny_run, tmp_path, kind, status):
    before = signal.getsignal(kind)
    error, record = ended(tiny_run, tmp_path, Signals(kind), SystemExit)
    assert error.code == status
    assert record["status"] == "interrupted"
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2, "the step is made, no other begun"
    [loader] = last["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader["given"] == 2, "no batch is skipped"
    assert signal.getsignal(kind) is before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_job_leaves_its_workers_to_end_the_step(tiny_run, tmp_path, kind, status):
    if (child := os.fork()) == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # those that the parent has would be waited for
            os.setsid()
            os.register_at_fork(after_in_child=start_a_thread)
            error, _ = ended([*tiny_run, "data.workers=1"], tmp_path, SignalsAll(kind), SystemExit)
            code = error.code
        except BaseException as error:
            tmp_path.joinpath("error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == status, tmp_path.joinpath("error.txt").read_text()
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "interrupted"
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2, "the step is made, no other begun"


IN_ONE_OF_TWO = """
import signal, sys
from lightning import Callback
from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.workflow.run import execute

class Signals(Callback):
    def on_after_backward(self, trainer, *_):
        if trainer.global_step == 1 and trainer.global_rank == int(sys.argv[1]):
            signal.raise_signal(int(sys.argv[2]))

run = build(load_config(sys.argv[4:], run_folder=sys.argv[3]))
run.trainer.callbacks.insert(0, Signals())
execute(run)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "kind"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_in_one_of_two_processes_ends_both_after_the_same_step(tiny_run, tmp_path, rank, kind):
    (tmp_path / "two.py").write_text(IN_ONE_OF_TWO)
    words = [*tiny_run, *SMALL, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    words = [str(tmp_path / "two.py"), str(rank), str(int(kind)), str(tmp_path / "run"), *words]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + (kind if rank == 0 else signal.SIGTERM), done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "interrupted"
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2, "the step is made, no other begun"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_gradients_that_are_no_numbers_end_a_run_and_name_the_last_good_checkpoint(tiny_run, tmp_path):
    error, record = ended(tiny_run, tmp_path, Spoils(), DivergedError)
    assert record["status"] == "failed"
    assert "step 5 (epoch 2, batch 2)" in str(error)
    assert str(tmp_path / "checkpoints") in str(error)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == 3, "no checkpoint of the step that diverged"


def test_a_loss_that_is_no_number_is_found_in_any_batch_of_a_step():
    stops, learner = StopsAtNaN(), torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(precision_plugin=None, checkpoint_callbacks=[], global_step=4, current_epoch=1)

    def step(*losses):
        for index, loss in enumerate(losses):
            stops.on_train_batch_start(trainer, learner, SimpleNamespace(ids=torch.tensor([index])), index)
            stops.on_before_backward(trainer, learner, torch.tensor(loss))
        stops.on_before_optimizer_step(trainer, learner, None)

    step(1.0, 2.0)
    with pytest.raises(DivergedError, match=r"step 5 .*the loss is nan.*Rows 0, 1 of manifest"):
        step(math.nan, 2.0)
