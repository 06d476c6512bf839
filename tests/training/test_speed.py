"""The fastest settings are found, by networks and images that sleep, and measuring changes nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.training import speed
from unseen.training.learner import MetricLearner
from unseen.training.progress import quiet
from unseen.training.speed import Network, Settings, Threads, fastest
from unseen.workflow.run import Run

PLAIN = Network("32-true", True, False)
SLOW, FAST = Network("32-true", False, False), Network("bf16-mixed", True, False)


class Sleeping:
    """Images of which each takes a while."""

    def __init__(self, images: Any, seconds: float) -> None:
        self.images, self.seconds = images, seconds

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        time.sleep(self.seconds)
        return self.images[row]


@pytest.fixture
def run(tiny_run: list[str], tmp_path: Path) -> Callable[..., Run]:
    def make(*overrides: str) -> Run:
        small = ["backbone.model=test_resnet", "embedding.size=8", "sampler.classes_per_batch=4"]
        return build(load_config([*tiny_run, *small, *overrides], run_folder=tmp_path / "run"))

    return make


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(speed, "available_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[Network, float]], None]:
    """`steps_take({form: seconds})`"""

    def patch(seconds: dict[Network, float]) -> None:
        def stepper(embedder: Any, form: Network, accelerator: str) -> Callable[[Tensor], None]:
            return lambda images: time.sleep(seconds[form])

        monkeypatch.setattr(speed, "_stepper", stepper)

    return patch


def found(run: Run, given: Settings, networks: list[Network], seconds: float = 0.01) -> speed.Measured:
    embedder, accelerator = run.learner.embedder, "cpu"
    return fastest(embedder, run.data, given, networks, accelerator=accelerator, seconds=seconds)


@pytest.mark.slow
def test_slow_images_want_workers_and_the_fastest_network_is_taken(
    run: Callable[..., Run], steps_take: Callable[..., None]
) -> None:
    made = run()
    made.data.images = Sleeping(made.data.images, 0.005)  # of 16 a batch
    steps_take({PLAIN: 0.04, SLOW: 0.2, FAST: 0.01})
    measured = found(made, Settings(PLAIN, 0, 2), [SLOW, FAST], seconds=0.1)
    assert measured.chosen.network == FAST
    assert measured.chosen.workers == 2
    # 16 images in 0.12 s, against 16 in 0.04 s that two processes prepare together.
    assert measured.images_per_second > 1.5 * measured.as_given


def test_what_was_given_stays_unless_something_is_clearly_faster(
    run: Callable[..., Run], steps_take: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_take({PLAIN: 0.0})
    given = Settings(PLAIN, 1, 2)
    for rate, chosen in ((102.0, given), (104.0, Settings(PLAIN, 0, 2))):
        rates = {0: rate, 1: 100.0, 2: 50.0}
        monkeypatch.setattr(speed, "_rate", lambda *arguments, r=rates: r[arguments[2].workers])
        measured = found(run(), given, [])
        assert (measured.chosen, measured.as_given) == (chosen, 100.0)


@pytest.mark.slow
def test_measuring_leaves_network_loader_and_threads_as_they_were(run: Callable[..., Run]) -> None:
    made = run()
    before = {name: value.clone() for name, value in made.learner.state_dict().items()}
    measured = found(made, Settings(PLAIN, 0, 1), [SLOW, FAST])
    assert measured.images_per_second >= measured.as_given > 0
    assert all(torch.equal(value, before[name]) for name, value in made.learner.state_dict().items())
    assert (made.data.workers, torch.get_num_threads()) == (0, 2)


class Watches(Callback):
    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.add(("step", torch.get_num_threads()))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.seen.add(("validation", torch.get_num_threads()))


def test_steps_have_their_threads_and_all_else_has_all(run: Callable[..., Run]) -> None:
    made = run("threads=1", "protocol=holdout", "protocol.class_fraction=0.5", "trainer.max_epochs=2")
    watches = Watches()
    made.trainer.callbacks.append(watches)
    with quiet():
        made.trainer.fit(made.learner, datamodule=made.data)
    assert watches.seen == {("step", 1), ("validation", 2)}
    assert torch.get_num_threads() == 2
    threads = Threads(1)
    threads.on_train_start()
    threads.on_exception()
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_backbone_embeds_as_the_plain_one_and_keeps_its_names(run: Callable[..., Run]) -> None:
    plain, compiled = run().learner, run("compile=true").learner
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    images = torch.rand(4, 3, 32, 32)

    def result(learner: MetricLearner) -> tuple[Tensor, Tensor]:
        embedding = learner.train()(images).embedding
        embedding.sum().backward()
        gradient = next(learner.embedder.backbone.parameters()).grad
        assert gradient is not None
        return embedding, gradient

    for wanted, got in zip(result(plain), result(compiled), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
