"""Going on from a checkpoint: the best epoch is remembered; another network is refused."""

import os
import time
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from unseen.tracking import run_folder
from unseen.training.checkpoints import Checkpoints, WholeFiles, check_resumable, newest_of
from unseen.workflow.run import _restore_chosen


class Scored(LightningModule):
    """Its validation score is whatever the test says of the epoch."""

    def __init__(self, scores):
        super().__init__()
        self.layer, self.scores = nn.Linear(1, 1), scores

    def training_step(self, batch, index):
        return self.layer(batch).mean()

    def validation_step(self, batch, index):
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fitted(folder, scores, epochs, resume_from=None):
    checkpoints = Checkpoints(dirpath=folder, filename="{epoch}", monitor="score", mode="max")
    trainer = Trainer(
        max_epochs=epochs, callbacks=[checkpoints], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(torch.ones(2, 1))
    trainer.fit(Scored(scores), loader, loader, ckpt_path=resume_from)
    return checkpoints


@pytest.mark.parametrize(("later", "best"), [(0.5, "epoch=0"), (0.95, "epoch=2")])
def test_a_run_resumed_in_another_folder_remembers_the_best_epoch(tmp_path, later, best):
    fitted(tmp_path / "first", [0.9, 0.2], 2)
    scores = [0.9, 0.2, later, 0.4]
    resumed = fitted(tmp_path / "second", scores, 4, tmp_path / "first" / "last.ckpt")
    assert best in resumed.best_model_path
    assert (tmp_path / "second" / f"{best}.ckpt").is_file(), "what a run measures lies in its own folder"
    assert (tmp_path / "first" / "epoch=0.ckpt").is_file(), "the first run keeps its files"
    assert (tmp_path / "second" / "last.ckpt").is_file()


def test_the_epoch_that_validation_chose_is_restored(tmp_path):
    """Each step lowers the weight by 0.1, and an epoch has two steps."""
    checkpoints = fitted(tmp_path, [0.2, 0.9, 0.4], 3)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2, "the last, though not the best"
    learner = Scored([])
    assert _restore_chosen(SimpleNamespace(checkpoints=checkpoints, learner=learner)) == 2
    torch.testing.assert_close(learner.layer.weight.data, last["state_dict"]["layer.weight"] + 0.2)


class Ticks(Callback):
    """A clock of one second a batch."""

    now = 0.0

    def on_train_batch_start(self, *_):
        self.now += 1


def test_within_an_epoch_a_checkpoint_is_written_whenever_so_many_seconds_have_passed(tmp_path, monkeypatch):
    clock, saved = Ticks(), []
    monkeypatch.setattr(
        WholeFiles, "save_checkpoint", lambda self, made, *_, **__: saved.append(made["global_step"])
    )
    trainer = Trainer(
        max_epochs=1, callbacks=[clock, Checkpoints(dirpath=tmp_path, save_every=3)], logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    trainer.fit(Scored([]), DataLoader(torch.ones(10, 1)))
    assert sorted(set(saved)) == [3, 6, 9, 10]


class ScoredBySteps(Scored):
    """Its validation score is whatever the test says of the number of steps."""

    def validation_step(self, batch, index):
        self.log("score", self.scores[self.global_step])


def test_a_checkpoint_in_mid_epoch_does_not_hide_what_a_validation_after_the_same_step_chooses(tmp_path):
    checkpoints = Checkpoints(dirpath=tmp_path, filename="{step}", monitor="score", mode="max", save_every=0)
    trainer = Trainer(
        max_epochs=2, callbacks=[checkpoints], logger=False, accelerator="cpu", val_check_interval=0.5,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(torch.ones(4, 1))
    trainer.fit(ScoredBySteps({2: 0.2, 4: 0.1, 6: 0.9, 8: 0.3}), loader, loader)
    assert "step=6" in checkpoints.best_model_path


def test_what_a_killed_process_had_not_finished_is_no_checkpoint_and_goes(tmp_path, monkeypatch):
    fitted(tmp_path, [0.2], 1)
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
    if (child := os.fork()) == 0:
        WholeFiles().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert len(list(tmp_path.glob(".*.ckpt"))) == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
    assert {path.name for path in run_folder.checkpoints(tmp_path / "run")} == {"last.ckpt", "epoch=0.ckpt"}
    fitted(tmp_path, [0.2, 0.3], 2, tmp_path / "last.ckpt")
    assert not list(tmp_path.glob(".*.ckpt"))


def test_a_best_epoch_whose_file_is_gone_is_sought_anew(tmp_path):
    fitted(tmp_path / "first", [0.9, 0.2], 2)
    (tmp_path / "first" / "epoch=0.ckpt").unlink()
    resumed = fitted(tmp_path / "second", [0.9, 0.2, 0.5], 3, tmp_path / "first" / "last.ckpt")
    assert "epoch=2" in resumed.best_model_path


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    learner = nn.ModuleDict({"embedder": nn.Linear(3, 4), "loss": nn.Linear(2, 2)})
    torch.save({"state_dict": learner.state_dict()}, tmp_path / "own.ckpt")
    check_resumable(learner, tmp_path / "own.ckpt")
    other = nn.ModuleDict({"embedder": nn.Linear(3, 5), "loss": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"own.ckpt.*2 weights differ, in embedder.bias, embedder.weight"):
        check_resumable(other, tmp_path / "own.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.ckpt: not a checkpoint"):
        check_resumable(nn.Linear(1, 1), tmp_path / "text.ckpt")


OWN = {
    "split": "s" * 64,
    "manifest": "m" * 64,
    "config": {"seed": 0, "loss.margin": 0.2, "trainer.max_epochs": 2},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "t" * 64}, "another split"),
        ({"manifest": "n" * 64}, "other images"),
        ({"config": {"seed": 1, "loss.margin": 0.2}}, "seed was 0, is 1"),
        ({"config": {"seed": 0, "loss.beta": 1}}, "loss.beta was None, is 1; loss.margin was 0.2, is None"),
    ],
)
def test_a_checkpoint_of_another_split_or_configuration_is_refused_by_name(tmp_path, changes, words):
    learner = nn.Linear(1, 1)
    torch.save({"state_dict": learner.state_dict(), "unseen": OWN}, tmp_path / "own.ckpt")
    more_epochs = OWN | {"config": OWN["config"] | {"trainer.max_epochs": 9}}
    check_resumable(learner, tmp_path / "own.ckpt", more_epochs)
    with pytest.raises(ValueError, match=words):
        check_resumable(learner, tmp_path / "own.ckpt", OWN | changes)


@pytest.mark.parametrize(("epoch", "most", "refused"), [(1, 2, False), (2, 2, True), (9, -1, False)])
def test_a_checkpoint_of_more_epochs_than_are_wanted_is_refused(tmp_path, epoch, most, refused):
    learner = nn.Linear(1, 1)
    torch.save({"state_dict": learner.state_dict(), "unseen": OWN, "epoch": epoch}, tmp_path / "own.ckpt")
    own = OWN | {"config": OWN["config"] | {"trainer.max_epochs": most}}
    if not refused:
        check_resumable(learner, tmp_path / "own.ckpt", own)
        return
    with pytest.raises(ValueError, match=r"is of epoch 3, past trainer\.max_epochs=2"):
        check_resumable(learner, tmp_path / "own.ckpt", own)


def save(path, age, identity=OWN, cut=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.ones(1000)}, "unseen": identity}, path)
    if cut:
        path.write_bytes(path.read_bytes()[:1000])
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_last_is_the_newest_checkpoint_of_the_folder_that_is_whole(tmp_path):
    save(tmp_path / "beside" / "checkpoints" / "last.ckpt", age=0)
    save(tmp_path / "run" / "checkpoints" / "last.ckpt", age=1, cut=True)
    whole = save(tmp_path / "run" / "checkpoints" / "001.ckpt", age=2)
    save(tmp_path / "run" / "checkpoints" / "000.ckpt", age=3)
    assert newest_of(tmp_path / "run", OWN) == whole
    for name in ("001", "000"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints in .* can be read.*hydra\.run\.dir"):
        newest_of(tmp_path / "run", OWN)


def test_without_one_of_its_own_last_is_that_of_the_newest_run_beside_it_with_the_same_settings(tmp_path):
    save(tmp_path / "a" / "checkpoints" / "last.ckpt", age=3)
    newest = save(tmp_path / "b" / "checkpoints" / "last.ckpt", age=2)
    save(tmp_path / "seed1" / "checkpoints" / "last.ckpt", 1, OWN | {"config": OWN["config"] | {"seed": 1}})
    save(tmp_path / "split" / "checkpoints" / "last.ckpt", 1, OWN | {"split": "t" * 64})
    more_epochs = OWN | {"config": OWN["config"] | {"trainer.max_epochs": 9}}
    assert newest_of(tmp_path / "new", more_epochs) == newest
    with pytest.raises(ValueError, match=r"of the 4 checkpoints in .* none is of a run with these settings"):
        newest_of(tmp_path / "new", OWN | {"config": {"seed": 5}})


def test_a_checkpoint_says_of_which_run_it_is_and_durations_add_up(tmp_path):
    first = Checkpoints(OWN, dirpath=tmp_path)
    assert first.train_seconds == 0
    saved = {}
    first._started = time.perf_counter() - 10
    first.on_save_checkpoint(None, None, saved)
    assert saved["unseen"]["split"] == OWN["split"]
    second = Checkpoints(OWN, dirpath=tmp_path)
    second.on_load_checkpoint(Trainer(logger=False), None, saved)
    assert second.earlier_seconds == pytest.approx(10, abs=1)
    second._started = time.perf_counter() - 5
    assert second.train_seconds == pytest.approx(15, abs=1)
