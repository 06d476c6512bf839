"""Records are found, told apart and never fatal."""

import json
import math

import pytest

from unseen.report.comparison import compare
from unseen.report.runs import RECORD, Run, differing_keys, load_runs
from unseen.tracking.record import RunRecord


def saved(record, folder):
    record.save(folder / RECORD)
    return folder


def test_every_record_below_in_the_order_of_paths(record, tmp_path):
    for name in ("b", "a/nested", "c"):
        saved(record(seed=len(name)), tmp_path / name)
    (tmp_path / "empty").mkdir()
    runs = load_runs(tmp_path)
    assert [run.folder for run in runs.finished] == [
        tmp_path / "a" / "nested",
        tmp_path / "b",
        tmp_path / "c",
    ]
    assert [run.seed for run in runs.finished] == [8, 1, 1]
    assert runs.finished[0].record == RunRecord.load(tmp_path / "a" / "nested" / RECORD)
    assert not runs.unfinished
    assert not runs.unreadable


def test_a_run_is_there_once_however_it_is_reached(record, tmp_path):
    folder = saved(record(), tmp_path / "sweep" / "one")
    saved(record(), tmp_path / "other")
    runs = load_runs([tmp_path, str(tmp_path / "sweep"), folder])
    assert len(runs.finished) == 2
    assert len(load_runs(folder).finished) == 1


def test_what_cannot_be_read_is_listed_with_its_reason(record, tmp_path):
    saved(record(), tmp_path / "good")
    saved(record(schema=99), tmp_path / "later")
    whole = (saved(record(), tmp_path / "cut") / RECORD).read_text()
    (tmp_path / "cut" / RECORD).write_text(whole[: len(whole) // 2])
    content = json.loads(whole)
    del content["metrics"]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / RECORD).write_text(json.dumps(content))
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / RECORD).write_bytes(b"\xff\xfe\x00")
    runs = load_runs(tmp_path)
    assert [run.name for run in runs.finished] == ["good"]
    reasons = {one.path.parent.name: one.reason for one in runs.unreadable}
    assert reasons.keys() == {"bytes", "cut", "later", "part"}
    assert "schema 99" in reasons["later"]
    assert "metrics" in reasons["part"]
    for name, reason in reasons.items():
        assert f"{name}/{RECORD}" in reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("choices", None),
        ("config", None),
        ("overrides", None),
        ("seconds", None),
        ("weights", 5),
        ("seed", "x"),
    ],
)
def test_a_record_of_which_a_part_is_of_another_kind_is_listed(record, tmp_path, name, value):
    path = saved(record(), tmp_path / "odd") / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    [found] = load_runs(tmp_path).unreadable
    assert "not a whole record" in found.reason


def test_a_duration_that_is_not_known_is_read_and_left_out_of_the_costs(record, runs_of, tmp_path):
    paths = [
        saved(record("baseline", seed, seconds={"train_total": seconds}), tmp_path / str(seed))
        for seed, seconds in enumerate([float("nan"), 10.0, 20.0, 30.0])
    ]
    saved(record("full"), tmp_path / "full")
    assert math.isnan(RunRecord.load(paths[0] / RECORD).seconds["train_total"])
    costs = {one.method: one.seconds for one in compare(load_runs(tmp_path)).costs}
    assert costs["baseline"] == 20.0


def test_failed_and_interrupted_runs_are_kept_apart(record, tmp_path):
    for status in ("success", "failed", "interrupted"):
        saved(record(status=status, error="it broke"), tmp_path / status)
    runs = load_runs(tmp_path)
    assert [run.name for run in runs.finished] == ["success"]
    assert [run.name for run in runs.unfinished] == ["failed", "interrupted"]


def test_jobs_without_a_record_wait(record, tmp_path):
    for name in ("to do", "done"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.yaml").write_text("seed: 0\n")
    saved(record(), tmp_path / "done")
    runs = load_runs([tmp_path, tmp_path / "to do"])
    assert [path.name for path in runs.waiting] == ["to do"]
    assert [run.name for run in runs.finished] == ["done"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere' is not a folder"):
        load_runs(tmp_path / "nowhere")
    assert not load_runs(tmp_path).finished


def test_groups_and_keys_of_a_run(record, tmp_path):
    run = Run(tmp_path, record("full"))
    assert run.value("ablation") == "full"
    assert run.value("trainer.max_epochs") == "4"
    assert run.value("adversary") == "grl"
    assert run.value("nowhere.to.be.found") == "none"
    assert run.has("loss")
    assert run.has("trainer.max_epochs")
    assert not run.has("trainer.epochs")
    assert Run(tmp_path, record("baseline", choices={"adversary": "None"})).value("adversary") == "none"


def test_settings_are_what_is_trained_and_how_it_is_measured(record, tmp_path):
    config = {"metrics": {"similarity": "cosine"}, "evaluation": {"draws": 20}}
    settings = Run(tmp_path, record("full", config=config, weights="abc" * 20)).settings
    assert settings["trainer.max_epochs"] == 4
    assert settings["metrics.similarity"] == "cosine"
    assert settings["evaluation.draws"] == 20
    assert settings["initial weights"] == "abcabcab"
    assert not {"seed", "run_folder", "data.root", "trainer.devices"} & settings.keys()


def test_keys_that_tell_runs_apart(record, runs_of):
    runs = runs_of(
        record("baseline"), record("full", 1), record("full", config={"trainer.max_epochs": 20})
    ).finished
    assert differing_keys(runs) == {
        "ablation": ["baseline", "full"],
        "adversary": ["grl", "none"],
        "fusion": ["attention", "last"],
        "trainer.max_epochs": ["20", "4"],
    }
