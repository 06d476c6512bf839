"""A run that stops anywhere goes on as if it had never stopped."""

import pytest
import torch
from lightning import Callback

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.training.checkpoints import newest_whole
from unseen.training.progress import quiet

STEPS = ["trainer.max_epochs=2", "sampler.classes_per_batch=4", "sampler.images_per_class=2"]


class Stops(Callback):
    """Ends training by an exception, within a step of which the optimiser knows nothing yet."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyError("stopped")


class Trained(Callback):
    """The images of each step that was made."""

    def __init__(self):
        self.ids = []

    def on_train_batch_end(self, trainer, learner, outputs, batch, index):
        self.ids.append(batch.ids.tolist())


class Noisy(torch.nn.Module):
    """A loss that draws from PyTorch's generator, as dropout in a network does."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, embeddings, *arguments):
        return self.loss(embeddings, *arguments) + (embeddings * torch.randn_like(embeddings)).mean()


def fitted(tiny_run, folder, *overrides, resume_from=None, stop_at=None):
    run = build(load_config([*tiny_run, *STEPS, *overrides], run_folder=str(folder)))
    run.learner.loss = Noisy(run.learner.loss)
    run.trainer.callbacks.append(Trained())
    if stop_at is not None:
        run.trainer.callbacks.insert(0, Stops(stop_at))
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=resume_from)
    return run


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    run = fitted(tiny_run, tmp_path_factory.mktemp("whole"))
    assert run.trainer.global_step == 6, "steps 1 and 4 must be within the first and the second epoch"
    return run


def images(run):
    return next(one for one in run.trainer.callbacks if isinstance(one, Trained)).ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_saves_within_an_epoch_goes_on_with_the_same_batches_and_random_numbers(
    tiny_run, tmp_path, whole
):
    with pytest.raises(KeyError, match="stopped"):
        fitted(tiny_run, tmp_path, "save_every=0", stop_at=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = fitted(tiny_run, tmp_path, resume_from=last)
    assert images(resumed) == images(whole)[4:]
    # The epoch's mean: of the step before, not of the one that broke off, and of those after.
    logged = [one.trainer.callback_metrics["train/loss"] for one in (resumed, whole)]
    assert logged[0] == logged[1]
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in resumed.learner.state_dict().items())
    assert not list((tmp_path / "checkpoints").glob("*-v*")), "it writes over what it resumed from"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_batch_whose_step_was_not_made_is_given_again(tiny_run, tmp_path, whole):
    with pytest.raises(KeyError, match="stopped"):
        fitted(tiny_run, tmp_path, "save_every=null", stop_at=1)
    resumed = fitted(tiny_run, tmp_path, resume_from=tmp_path / "checkpoints" / "last.ckpt")
    assert images(resumed) == images(whole)[1:]


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    whole, cut = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    assert newest_whole([cut, whole]) == whole
    assert newest_whole([cut]) is None
