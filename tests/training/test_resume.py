"""Epochs in one run or in several: the same batches, losses and weights, bit for bit.

For every loss, miner and memory, and for what else has a state: from the end of an epoch and from within one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, open_dict

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.training.audit import AdversaryAudit
from unseen.training.progress import quiet
from unseen.workflow.run import Run

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = [
    "backbone.model=test_resnet", "trainer.max_epochs=3", "embedding.size=8",
    "transforms=standard", "callbacks.audit.probe_every=0",
]  # fmt: skip
BATCHES = {"batch_size": 8, "classes_per_batch": 4, "images_per_class": 2, "classes_per_cluster": 2}


def choices(group: str) -> list[str]:
    return [f"{group}={path.stem}" for path in sorted((CONF / group).glob("[!_]*.yaml"))]


# Several at once, where each has a state of its own or draws random numbers.
TOGETHER = [
    "adversary=grl schedule=step protocol=holdout averaging=ema logger=tensorboard",
    "adversary=erasure embedding.size=16 schedule=constant protocol=folds averaging=swa",
    "adversary=shared regularizer=mixup",
    "adversary=virtual_random regularizer=self_distillation loss=norm_softmax",
    "adversary=attention_shuffled regularizer=distillation",
]
CASES = [
    *choices("loss"), *choices("miner"), *choices("memory"), "sampler=clustered",
    "+trainer.accumulate_grad_batches=2", *TOGETHER
]  # fmt: skip
OF_TIME = ("train/images_per_second", "train/waiting_for_data")


class Steps(Callback):
    """Images and loss of each step, and what is logged of each epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, list[int], float]] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, learner: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append((trainer.current_epoch, index, batch.ids.tolist(), float(outputs["loss"])))

    def on_train_epoch_end(self, trainer: Any, learner: Any) -> None:
        logged = trainer.callback_metrics.items()
        wanted = ("train/", "validation/")
        self.epochs.append(
            {name: float(value) for name, value in logged if name.startswith(wanted) and name not in OF_TIME}
        )


def trained(config: DictConfig, folder: Path, resume_from: Path | None = None, **changes: Any) -> Run:
    config = config.copy()
    with open_dict(config):
        config.run_folder = config.trainer.default_root_dir = str(folder)
        config.resume_from = None if resume_from is None else str(resume_from)
        config.data.update(changes)
    run = build(config)
    every = {"save_top_k": -1, "dirpath": folder / "kept", "filename": "{step}"}
    run.trainer.callbacks += [
        Steps(),
        ModelCheckpoint(**every, every_n_train_steps=1, save_on_train_epoch_end=False),
        ModelCheckpoint(**{**every, "filename": "end-{step}"}, save_on_train_epoch_end=True),
    ]
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=run.resume_from, weights_only=True)
    return run


def made(run: Run) -> Steps:
    return next(one for one in run.trainer.callbacks if isinstance(one, Steps))


def steps(run: Run) -> list[tuple[int, int, list[int], float]]:
    return made(run).seen


def audited(run: Run) -> dict[str, Any]:
    return next(one for one in run.trainer.callbacks if isinstance(one, AdversaryAudit)).state_dict()


@pytest.fixture
def composed(tiny_run: list[str]) -> Callable[..., DictConfig]:
    def compose(*overrides: str) -> DictConfig:
        words = [word for word in tiny_run if not word.startswith(("trainer.max_epochs", "transforms"))]
        config = load_config([*words, *TINY, *overrides])
        # A loss chooses its sampler.
        config.sampler.update({key: value for key, value in BATCHES.items() if key in config.sampler})
        return config

    return compose


def check_equal(resumed: Run, whole: Run, from_step: int) -> None:
    assert steps(resumed) == steps(whole)[from_step:]
    # The mean of an epoch that was interrupted is of all its steps.
    assert made(resumed).epochs == made(whole).epochs[-len(made(resumed).epochs) :]
    assert audited(resumed) == audited(whole)
    wanted, found = whole.learner.state_dict(), resumed.learner.state_dict()
    assert wanted.keys() == found.keys()
    assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []
    # Of the same layout too, by which a machine may choose how it multiplies.
    assert [name for name, value in wanted.items() if value.stride() != found[name].stride()] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("override", CASES)
def test_epochs_in_two_runs_are_those_of_one(
    composed: Callable[..., DictConfig], tmp_path: Path, override: str
) -> None:
    """From the end of the second epoch, and from within it."""
    config = composed(*override.split())
    whole = trained(config, tmp_path / "whole")
    batches = len(steps(whole)) // 3
    assert batches >= 3
    assert len({loss for *_, loss in steps(whole)}) > 1
    accumulated = config.trainer.get("accumulate_grad_batches", 1)
    for kept, done in (("end-step={}", 2 * batches), ("step={}", batches + accumulated)):
        made = -(-batches // accumulated) * (done // batches) + done % batches // accumulated
        resumed = trained(config, tmp_path / kept, tmp_path / "whole" / "kept" / f"{kept.format(made)}.ckpt")
        check_equal(resumed, whole, done)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_number_of_loading_processes_changes_nothing(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """From within an epoch, with augmentation, dropped paths and a noisy adversary."""
    config = composed(
        "adversary=attention_noise", "backbone.options={drop_path_rate:0.5}", "transforms=strong"
    )
    whole = trained(config, tmp_path / "whole")
    resumed = trained(config, tmp_path / "resumed", tmp_path / "whole" / "kept" / "step=4.ckpt", workers=2)
    check_equal(resumed, whole, 4)
