"""The record of a run: whole after a round trip, strict JSON, and about this machine."""

import dataclasses
import json
import math
import os
import platform
import subprocess

import pytest
import torch

from unseen.tracking import record as module
from unseen.tracking.record import Environment, PeakMemory, RunRecord


def example(**changes):
    content = {
        "choices": {"loss": "triplet", "ablation": "full"},
        "seed": 3,
        "config": {"optimizer": {"rates": [1e-3, 0.1]}, "name": "häufig", "nothing": None},
        "split": "ab" * 32,
        "manifest": "cd" * 32,
        "metrics": {"unseen": {"recall_at_1": 0.5, "map_at_r": 0.25}, "gap": {"recall_at_1": -0.01}},
        "seconds": {"train": 12.5},
        "images_per_second": 321.0,
    }
    return RunRecord(**(content | changes))


def test_round_trip(tmp_path):
    record = example()
    record.save(tmp_path / "run" / "record.json")
    assert RunRecord.load(tmp_path / "run" / "record.json") == record
    assert os.listdir(tmp_path / "run") == ["record.json"]


def test_what_is_undefined_is_null_in_strict_json(tmp_path):
    path = tmp_path / "record.json"
    metrics = {"unseen": {"recall_at_1": math.nan, "map_at_r": math.inf, "nmi": 0.5}}
    example(metrics=metrics, images_per_second=math.nan, config={"clip": math.inf}).save(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"]["unseen"] == {"recall_at_1": None, "map_at_r": None, "nmi": 0.5}
    assert content["config"] == {"clip": None}
    loaded = RunRecord.load(path)
    assert math.isnan(loaded.metrics["unseen"]["recall_at_1"])
    assert math.isnan(loaded.images_per_second)
    assert loaded.metrics["unseen"]["nmi"] == 0.5


def test_a_failure_leaves_the_old_record(tmp_path):
    path = tmp_path / "record.json"
    example().save(path)
    with pytest.raises(TypeError):
        example(config={"loss": torch.nn.Identity}).save(path)
    assert RunRecord.load(path).config == example().config
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_record_is_as_readable_as_any_file(tmp_path):
    example().save(tmp_path / "record.json")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "record.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "{"])
def test_what_is_no_record_is_refused(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        RunRecord.load(path)


def test_a_later_schema_is_refused(tmp_path):
    path = tmp_path / "record.json"
    example(schema=99).save(path)
    with pytest.raises(ValueError, match="schema 99"):
        RunRecord.load(path)


def test_a_field_of_a_later_version_is_no_obstacle(tmp_path):
    path = tmp_path / "record.json"
    example().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": "fine"}))
    assert RunRecord.load(path).seed == 3


def test_environment_is_this_one():
    environment = Environment.here()
    assert environment.versions["torch"] == torch.__version__.split("+")[0] or environment.versions["torch"]
    assert environment.versions["python"] == platform.python_version()
    assert 1 <= environment.cores <= os.cpu_count()
    assert environment.memory_bytes > 2**28
    assert environment.processor
    assert len(environment.accelerators) == torch.cuda.device_count()


def test_commit_is_gits_and_none_elsewhere(tmp_path, monkeypatch):
    assert module._commit(tmp_path) is None
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    assert module._commit(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("")
    subprocess.run(["git", "-C", str(tmp_path), "add", "file"], check=True)
    assert module._commit(tmp_path) == head.stdout.strip() + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert module._commit(tmp_path) is None


def test_peak_memory_never_falls():
    before = PeakMemory.here().host_bytes
    block = torch.ones(30_000_000)
    after = PeakMemory.here().host_bytes
    assert before >= 2**26
    assert after >= before
    assert block.sum() > 0
    assert (PeakMemory.here().accelerator_bytes is None) == (not torch.cuda.is_available())


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 4
