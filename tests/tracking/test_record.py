"""The record of a run: whole after a round trip, strict JSON, and about this machine."""

import dataclasses
import json
import math
import os
import platform
import subprocess

import numpy
import pytest
import torch

from unseen.tracking import environment as module
from unseen.tracking.environment import Environment, PeakMemory
from unseen.tracking.record import RunRecord, essential, job_key, save_queries


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


def test_a_path_that_is_no_text_is_kept(tmp_path):
    config = {"data": {"root": "/photos/caf\udce9", "name": "Hérisson"}}
    example(config=config).save(tmp_path / "record.json")
    assert RunRecord.load(tmp_path / "record.json").config == config
    assert "Hérisson" in (tmp_path / "record.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', "{"])
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
    assert environment.accelerators == []
    assert Environment.here(["a GPU"]).accelerators == ["a GPU"]


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
    assert PeakMemory.here().accelerator_bytes is None
    assert PeakMemory.here(7).accelerator_bytes == 7


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 4


def test_an_older_record_lacks_minor_fields_and_is_read(tmp_path):
    path = tmp_path / "record.json"
    intervals = {"unseen": {"recall_at_1": (0.4, 0.6)}}
    example(spread={"gap": {"recall_at_1": 0.02}}, intervals=intervals).save(path)
    content = json.loads(path.read_text())
    assert RunRecord.load(path).intervals == intervals
    for name in ("spread", "intervals", "per_class", "job_key", "status", "steps", "images_per_second"):
        del content[name]
    del content["environment"]["commit"]
    content["environment"]["moon"] = "full"
    path.write_text(json.dumps(content))
    loaded = RunRecord.load(path)
    assert (loaded.spread, loaded.status, loaded.steps) == ({}, "success", None)
    assert loaded.environment.commit is None
    assert math.isnan(loaded.images_per_second)


@pytest.mark.parametrize("name", ["environment", "peak_memory", "finished", "metrics"])
def test_what_only_the_writer_knows_is_not_made_up_by_the_reader(tmp_path, name):
    path = tmp_path / "record.json"
    example().save(path)
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=name):
        RunRecord.load(path)


CONFIG = {
    "seed": 0, "run_folder": "runs/a", "logger": {"csv": {"save_dir": "x"}}, "loss": {"margin": 0.2},
    "backbone": {"model": "resnet18", "weights": "/here/w.pth"},
    "data": {"root": "/here", "workers": 2, "image_size": 64, "source": {"root": "/here"}},
}  # fmt: skip


def changed(key, value):
    content = json.loads(json.dumps(CONFIG))
    *above, last = key.split(".")
    node = content
    for name in above:
        node = node[name]
    node[last] = value
    return content


def key_of(config, split="s", weights="w", version="1"):
    return job_key(config, split, weights, version)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run_folder", "runs/b"), ("logger", {}), ("data.root", "/there"), ("data.source.root", "/there"),
        ("data.workers", 0), ("backbone.weights", "/there/w.pth"),
    ],
)  # fmt: skip
def test_a_job_key_does_not_depend_on_where_a_run_goes(key, value):
    assert key_of(changed(key, value)) == key_of(CONFIG)


def test_a_job_key_depends_on_all_that_is_trained():
    others = [changed("seed", 1), changed("loss.margin", 0.3), changed("data.image_size", 65)]
    keys = {key_of(CONFIG), *map(key_of, others)}
    keys |= {key_of(CONFIG, split="t"), key_of(CONFIG, weights="v"), key_of(CONFIG, version="2")}
    assert len(keys) == 7
    assert essential(CONFIG) == {
        "seed": 0, "loss.margin": 0.2, "backbone.model": "resnet18", "data.image_size": 64
    }  # fmt: skip


def test_values_of_queries_are_kept_beside_the_record(tmp_path):
    columns = {"ids": [3, 5], "recall_at_1": [1.0, math.nan]}
    save_queries(tmp_path / "queries.npz", columns)
    with numpy.load(tmp_path / "queries.npz") as saved:
        assert saved["ids"].tolist() == [3, 5]
        assert saved["recall_at_1"][0] == 1.0
    assert os.listdir(tmp_path) == ["queries.npz"]
