"""What was measured is remembered for a network on a machine, and a record says what was used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unseen.config import speed
from unseen.config.build import Given, build, build_embedder
from unseen.config.command_line import load_config
from unseen.config.freeze import Freezer
from unseen.training.speed import Measured, Network, Settings
from unseen.workflow.run import Run, execute

CHOSEN = Settings(Network("bf16-mixed", False, False), 1, 1)


@pytest.fixture
def words(tiny_run: list[str], tmp_path: Path) -> list[str]:
    return [
        *tiny_run, "backbone.model=test_resnet", "embedding.size=8", "sampler.classes_per_batch=4",
        "speed=measured", "pictures=false", f"data.cache_dir={tmp_path / 'cache'}", "evaluation.resamples=10",
    ]  # fmt: skip


@pytest.fixture
def built(words: list[str], tmp_path: Path) -> Callable[..., Run]:
    return lambda *more: build(load_config([*words, *more], run_folder=tmp_path / "run"))


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What was given at each measurement, which finds `CHOSEN`."""
    return measured(monkeypatch, lambda embedder, given: given)


@pytest.fixture
def measured_networks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    return measured(monkeypatch, lambda embedder, given: embedder)


def measured(monkeypatch: pytest.MonkeyPatch, kept: Callable[[object, Settings], Any]) -> list[Any]:
    calls: list[Any] = []

    def fastest(embedder: object, data: object, given: Settings, networks: object, **_: object) -> Measured:
        calls.append(kept(embedder, given))
        return Measured(CHOSEN, 120.0, 100.0)

    monkeypatch.setattr(speed, "fastest", fastest)
    return calls


@pytest.mark.slow
def test_what_was_measured_is_remembered_for_the_same_network_and_batches(
    built: Callable[..., Run],
    measurements: list[Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for more in ((), (), ("seed=3", "loss=triplet", "trainer.max_epochs=5"), ("data.image_size=40",)):
        run = built(*more)
        assert (run.data.workers, run.trainer.precision) == (1, "bf16-mixed")
    assert len(measurements) == 2, "another size is another network"
    said = capsys.readouterr().out
    typed = "trainer.precision=bf16-mixed channels_last=false compile=false data.workers=1 threads=1"
    assert f"Fastest here: {typed} (120 images/s; as given 100; measured in" in said
    assert f"; remembered in {tmp_path / 'cache' / 'speed'}" in said
    for file in (tmp_path / "cache" / "speed").glob("*.json"):
        file.write_text(json.dumps({"chosen": 3}))
    built()
    assert len(measurements) == 3, "what cannot be read is measured again"


@pytest.mark.slow
def test_a_record_has_what_was_used_and_the_job_the_name_that_a_sweep_gives_it(
    built: Callable[..., Run], measurements: list[Settings], words: list[str], tmp_path: Path
) -> None:
    record = execute(built())
    assert record.config["trainer"]["precision"] == "bf16-mixed"
    assert (record.config["threads"], record.config["channels_last"]) == (1, False)
    assert record.job_key == Freezer().freeze(words, tmp_path / "sweep").job.key
    resumed = built("trainer.max_epochs=1", f"resume_from={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    assert resumed.resume_from is not None


def test_a_network_that_was_given_is_measured_as_a_copy_and_each_time(
    words: list[str], measured_networks: list[object], tmp_path: Path
) -> None:
    config = load_config(words, run_folder=tmp_path / "run")
    embedder = build_embedder(config)
    for _ in range(2):
        run = build(config, Given(embedder=embedder))
        assert run.learner.embedder is embedder
    assert len(measured_networks) == 2
    assert all(network is not embedder for network in measured_networks)
    assert not (tmp_path / "cache" / "speed").exists()


@pytest.mark.parametrize(
    ("more", "environment", "message"),
    [
        (["backbone.frozen=true"], {}, "speed=measured with backbone.frozen=true"),
        ([], {"WORLD_SIZE": "2"}, "several processes would measure at once"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    built: Callable[..., Run],
    measurements: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        built(*more)
    assert measurements == []
