"""Two and three processes train as one process with their images in one batch.

The processes start once and go through all cases. Each class comes once or twice in a share, so that what
compares images within it alone finds other pairs, or none.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.data.batch import Batch
from unseen.nn.backbone import FeatureMaps
from unseen.nn.embedder import Embedder
from unseen.training.learner import MetricLearner
from unseen.training.progress import quiet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONF = Path(__file__).resolve().parents[2] / "conf"
OF_TIME = ("train/images_per_second", "train/waiting_for_data")
STEPS, IMAGES, CLASSES = 2, 12, 4


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


# Every choice of these groups, each in a place of its own: composing costs more than training.
EVERY = ["loss", "miner", "memory", "adversary", "regularizer", "fusion"]
PRIMARY = {
    "defaults": [
        "_self_",
        {"sampler": "shuffled"},
        *(
            {"embedding": "default"},
            {"miner": "none"},
            {"memory": "none"},
            {"optimizer": "scratch"},
            {"schedule": "constant"},
        ),
        *({f"{group}@{group}s.{name}": name} for group in EVERY for name in choices(group) if name != "none"),
    ],
    "data": {"image_size": 32},
    "hydra": {"searchpath": [f"file://{CONF}"]},
}
OF_PAIRS = ("introspection",)
"""Regularisers that refuse losses with proxies."""
PLAIN = {"loss": "multi_similarity", "fusion": "attention"}
CASES: list[dict[str, Any]] = [
    *({"loss": name} for name in choices("loss")),
    *({"loss": "triplet", "miner": name} for name in choices("miner")),
    *({"loss": name, "memory": "cross_batch"} for name in ("contrastive", "margin", "multi_similarity")),
    *({"adversary": name} for name in choices("adversary")),
    *(
        {"regularizer": name, "loss": "norm_softmax"}
        for name in choices("regularizer")
        if name not in OF_PAIRS
    ),
    *({"regularizer": name} for name in OF_PAIRS),
    *({"fusion": "gap", "adversary": name} for name in ("taps", "attention")),
]


class Backbone(nn.Module):
    """Two convolutions; batch norm would have statistics of each process's images."""

    tap_channels, final_channels, frozen = [6, 8], 8, False

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.last = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> FeatureMaps:
        first = self.first(images.float() / 255 - 0.5).relu()
        final = self.last(first).relu()
        return FeatureMaps([first, final], final)


class Step(nn.Module):
    """A training step as a module, so that torch can wrap it."""

    def __init__(self, learner: MetricLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Batch, index: int) -> Tensor:
        return self.learner.training_step(batch, index)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    hues = torch.randint(40, 216, (CLASSES, 3, 1, 1), generator=generator)
    made = []
    for step in range(STEPS):
        noise = torch.randint(-40, 40, (IMAGES, 3, 16, 16), generator=generator)
        made.append(
            Batch((hues[labels] + noise).to(torch.uint8), labels, step * IMAGES + torch.arange(IMAGES))
        )
    return made


def trained(learner: MetricLearner, rank: int, world: int) -> dict[str, Any]:
    """Losses, what was logged, the gradients of the first step, and the weights after the last."""
    torch.manual_seed(5)
    logged: list[dict[str, float]] = []
    learner.log = lambda name, value, **_: logged[-1].update({name: float(torch.as_tensor(value).detach())})
    progress = SimpleNamespace(current=SimpleNamespace(ready=1))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_results={}, batch_progress=progress))
    trainer = SimpleNamespace(
        fit_loop=loop, estimated_stepping_batches=STEPS, current_epoch=3, world_size=world,
        accumulate_grad_batches=1,
    )  # fmt: skip
    # A trainer of Lightning's would start processes of its own.
    learner._trainer = trainer
    learner.train()
    learner.embedder.choose_trainable(learner.trainable)
    step = Step(learner)
    if world > 1:
        step = DistributedDataParallel(step, find_unused_parameters=True)
    optimizer = torch.optim.SGD([one for one in learner.parameters() if one.requires_grad], 0.05)
    found: dict[str, Any] = {"losses": [], "logged": logged}
    for index, batch in enumerate(batches()):
        trainer.global_step = index
        # As the ranks of a run have it: each its own numbers for what it draws of its images.
        torch.manual_seed(100 * index + rank)
        share = Batch(*(column.chunk(world)[rank] for column in batch[:3]))
        logged.append({})
        optimizer.zero_grad()
        loss = step(share, index)
        loss.backward()
        if index == 0:
            found["gradients"] = {
                n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None
            }
        optimizer.step()
        found["losses"].append(loss.item())
    found["weights"] = {name: value.clone() for name, value in learner.state_dict().items()}
    return found


def all_trained(rank: int, world: int, learners: dict[str, MetricLearner]) -> dict[str, Any]:
    return {case: trained(copy.deepcopy(learner), rank, world) for case, learner in learners.items()}


def learner_of(config: DictConfig, case: dict[str, str]) -> MetricLearner:
    def made(group: str) -> Any:
        name = {**PLAIN, **case}.get(group, "none")
        return None if name == "none" else instantiate(config[f"{group}s"][name])

    torch.manual_seed(0)
    config = config.copy()
    config.miner = config.miners.get(case.get("miner", "none"))
    config.memory = config.memorys.get(case.get("memory", "none"))
    embedder = Embedder(Backbone(), made("fusion"), **config.embedding)
    make, adversary, regularizer = made("loss"), made("adversary"), made("regularizer")

    def loss_of(size: int) -> nn.Module:
        return make(num_classes=CLASSES, embedding_size=size)

    if adversary is not None:
        sees = {"fused": embedder.fusion.out_features, "embedding": config.embedding.size}
        adversary = adversary(in_features=sees[adversary.keywords["sees"]], num_classes=CLASSES)
    return MetricLearner(
        embedder,
        loss_of(config.embedding.size),
        adversary,
        instantiate(config.optimizer),
        regularizer=None if regularizer is None else regularizer(embedder=embedder, loss=loss_of),
    )


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MetricLearner]:
    folder = tmp_path_factory.mktemp("configuration")
    folder.joinpath("primary.yaml").write_text(yaml.safe_dump(PRIMARY))
    changes = ["embedding.size=16"]
    changes += ["memorys.cross_batch.size=20", "memorys.cross_batch.warmup=1"]
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose("primary", changes)
    return {
        " ".join(f"{key}={name}" for key, name in case.items()): learner_of(config, case) for case in CASES
    }


@pytest.fixture(scope="module")
def alone(learners: dict[str, MetricLearner]) -> dict[str, Any]:
    return all_trained(0, 1, learners)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_as_one_with_all_their_images(
    learners: dict[str, MetricLearner], alone: dict[str, Any], on_ranks: Callable[..., Any], world: int
) -> None:
    ranks = on_ranks(world, functools.partial(all_trained, learners=learners))
    wrong = {}
    for case, wanted in alone.items():
        for rank, found in enumerate(ranks):
            try:
                torch.testing.assert_close(found[case], wanted, rtol=1e-4, atol=1e-5)
            except AssertionError as error:
                wrong[case, rank] = str(error)
    assert not wrong, "\n".join(f"{case} on rank {rank}: {words}" for (case, rank), words in wrong.items())


@pytest.mark.parametrize(("precision", "rtol", "atol"), [("32-true", 1e-3, 1e-5), ("bf16-mixed", 2e-2, 5e-3)])
def test_a_run_of_two_processes_is_one_with_batches_twice_as_large(
    tiny_run: list[str], tmp_path: Path, precision: str, rtol: float, atol: float
) -> None:
    """Through Lightning: averages, gradients of two batches, a backbone that rests at first, and curves."""
    changes = [
        "backbone.model=test_resnet", "embedding.frozen_batch_norm=true", "trainer.max_epochs=2",
        "loss=proxy_anchor", "adversary=grl", "averaging=ema", "+trainer.accumulate_grad_batches=2",
        "optimizer.frozen_backbone_epochs=1", "protocol=holdout", "callbacks.audit.probe_every=0",
        "transforms=standard", f"trainer.precision={precision}",
    ]  # fmt: skip
    found = {}
    shared = ["trainer=ddp", "trainer.devices=2", "trainer.strategy=ddp_fork_find_unused_parameters_true"]
    for world, more in ((1, []), (2, shared)):
        overrides = [*tiny_run, *changes, *more, f"sampler.batch_size={4 // world}"]
        config = load_config(overrides, run_folder=str(tmp_path / f"{world}"))
        run = build(config)
        with quiet():
            run.trainer.fit(run.learner, datamodule=run.data)
        logged = run.trainer.callback_metrics.items()
        curves = {
            name: float(value) for name, value in logged if name.startswith("train/") and name not in OF_TIME
        }
        found[world] = {"curves": curves, "weights": run.learner.state_dict()}
    assert found[1]["curves"]["train/adversary_loss"] > 0
    if precision == "bf16-mixed":
        for one in found.values():
            # Directions of nearly equal variance turn into each other by rounding, similarities do not.
            directions = one["weights"].pop("embedder.readout.directions")
            one["weights"]["similarities"] = directions.T @ directions
    torch.testing.assert_close(found[2], found[1], rtol=rtol, atol=atol)
