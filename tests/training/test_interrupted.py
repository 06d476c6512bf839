"""A run that stops anywhere goes on as if it had never stopped."""

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from unseen.config.build import Given, build
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


class Ends(Callback):
    """Ends training after an epoch, as early stopping does, or after a step."""

    def __init__(self, after):
        self.after = after

    def on_train_epoch_end(self, trainer, *_):
        trainer.should_stop |= self.after == "epoch"

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= self.after == "step"


class EndsLate(Ends, EarlyStopping):
    """Likewise, in the turn of early stopping, which is after the learner's own."""

    def __init__(self):
        EarlyStopping.__init__(self, "train/loss")
        self.after = "epoch"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("overrides", "callbacks"),
    [
        (["+trainer.max_steps=2"], []),
        (["+trainer.max_steps=3"], []),
        ([], [Ends("step")]),
        ([], [Ends("epoch")]),
        ([], [EndsLate()]),
    ],
    ids=["within an epoch", "at its end", "by a callback", "by one at its end", "by early stopping"],
)
def test_training_that_ends_otherwise_leaves_checkpoints_with_the_readout_that_is_measured(
    tiny_run, tmp_path, overrides, callbacks
):
    given = Given(callbacks=callbacks)
    run = build(load_config([*tiny_run, *STEPS, *overrides], run_folder=str(tmp_path)), given)
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data)
    assert run.trainer.global_step <= 3
    kept = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(kept) == 2
    for path in kept:
        state = torch.load(path, weights_only=True)["state_dict"]
        for name, value in run.learner.embedder.readout.state_dict().items():
            assert torch.equal(state[f"embedder.readout.{name}"], value), (path.name, name)
    assert run.learner.embedder.readout.mean.norm() > 0, "it was fitted"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("every", "stop_at", "left"), [("null", 2, 3), ("0", 3, 1)])
def test_a_step_of_several_batches_is_made_of_all_of_them_again(tiny_run, tmp_path, every, stop_at, left):
    """An epoch has 3 batches and so 2 steps, of which the second has one batch. It stops in the 5th, or the
    6th batch."""
    several = ["+trainer.accumulate_grad_batches=2", f"save_every={every}"]
    whole = fitted(tiny_run, tmp_path / "whole", *several)
    assert whole.trainer.global_step == 4
    with pytest.raises(KeyError, match="stopped"):
        fitted(tiny_run, tmp_path / "cut", *several, stop_at=stop_at)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = fitted(tiny_run, tmp_path / "cut", *several, resume_from=last)
    assert images(resumed) == images(whole)[-left:]
    assert resumed.trainer.global_step == 4


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    whole, cut = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    assert newest_whole([cut, whole]) == whole
    assert newest_whole([cut]) is None
