"""`unseen tune` as a user types it: what it refuses, what a trial looks at, and what it leaves."""

import signal
import sys

import optuna
import pytest
import torch
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from unseen.apps.tune import main
from unseen.config.command_line import load_config
from unseen.config.freeze import Freezer
from unseen.config.identity import plain
from unseen.config.tune import WHOLE, beside_own_groups, metric_names, planned, tune, write_experiment
from unseen.config.values import UsageError
from unseen.retrieval import evaluate
from unseen.sweep import process
from unseen.tracking.record import RunRecord, essential


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["protocol=fixed"], "protocol=fixed: holds no training classes out"),
        (["protocol.class_fraction=0"], "protocol.class_fraction=0"),
        (["space=none"], "Nothing is sought"),
        (["space=rate"], "did you mean 'rates'"),
        (["trials=0"], "trials=0: wanted at least 1"),
        (["optimizer.learning_rate.head=1,2"], "did you mean 'learning_rates'"),
        (["loss=tripplet,contrastive"], "did you mean 'triplet'"),
        (["embedding.size=interval(64,8)"], "a lower and a higher end"),
        (["embedding.size=tag(log,interval(0,8))"], "starts above 0"),
        (["each=[ablation]"], "'ablation' has no values"),
        (["each=[seed]", "seed=interval(0,3)"], "does not list values"),
        (["objectives.map_at_r=up"], "choices are maximize, minimize"),
        (
            ["+objectives.recal_at_1=maximize"],
            "objectives.recal_at_1: trials are not measured by it. Choices: ",
        ),
        (["+objectives.nmi=maximize"], "recall_at_8, knn_accuracy_3, map_at_r, r_precision, seconds, param"),
        (["hydra/launcher=joblib"], "has no place in a search"),
        (["run_folder=/tmp/x"], "has no place in a search"),
        (["seed=(1"], "cannot be read"),
        (["backbone.frozen=true"], "Of the rates, seek the head's alone"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(typed, words, tiny_run, tmp_path):
    with pytest.raises(UsageError) as refused:
        tune([*tiny_run, f"tune_folder={tmp_path}", *typed])
    assert words in str(refused.value)
    assert not list(tmp_path.glob("*/trials"))


def test_the_names_of_metrics_are_those_that_are_measured():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    whole = dict.fromkeys(WHOLE, True)
    for asked in ({}, {"recall_at": [1, 3], "precision_at": [2], "knn_accuracy_at": [], **whole}):
        assert set(metric_names(asked)) == set(evaluate(embeddings, labels, **asked).metrics)


def test_what_tells_studies_apart_is_what_each_of_them_has(tiny_run):
    _, plans = planned([*tiny_run, "each=[protocol]", "protocol=holdout,folds"])
    choices = [Freezer().freeze([*plan.fixed, "seed=1"], "unused").config.choices.protocol for plan in plans]
    assert choices == ["holdout", "folds"]
    rate = "optimizer.learning_rates.head"
    _, plans = planned([*tiny_run, f"each=[{rate}]", f"{rate}=1e-3,1e-2"])
    assert [[f"{rate}={value}" in plan.fixed for value in (0.001, 0.01)] for plan in plans] == [
        [True, False],
        [False, True],
    ]
    assert [set(plan.space) for plan in plans] == [{"optimizer.learning_rates.backbone"}] * 2
    assert all("protocol=holdout" in plan.fixed for plan in plans)


def test_a_request_for_its_config_starts_no_search(monkeypatch, tiny_run, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["unseen tune", *tiny_run, f"tune_folder={tmp_path}", "--cfg", "job"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "A search has many configs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_experiment_has_the_effect_of_what_was_typed(tiny_run, tmp_path):
    sought = ["loss=norm_softmax", "fusion=gap", "optimizer.learning_rates.head=0.00123", "embedding.size=96"]
    typed = [*tiny_run, "ablation=custom", *sought]
    write_experiment(tmp_path / "experiment" / "best.yaml", [*typed, "protocol=holdout"], trials=12)
    made = plain(Freezer(config_dir=str(tmp_path)).freeze(["experiment=best"], tmp_path).config)
    wanted = plain(load_config(typed, run_folder=str(tmp_path)))
    assert essential(made) == essential(wanted)
    assert made["tuning_trials"] == 12
    assert made["protocol"] == wanted["protocol"]


def test_with_groups_of_ones_own_what_is_printed_has_the_effect_of_what_was_typed(tiny_run, tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("defaults: [triplet]\n")
    found = [*tiny_run, "protocol=holdout", "loss=mine", "optimizer.learning_rates.head=0.00123"]
    flag, folder, *words = beside_own_groups(str(tmp_path), found, trials=5)
    assert flag == "--config-dir"
    made = plain(Freezer(config_dir=folder).freeze(words, tmp_path).config)
    assert made["tuning_trials"] == 5
    assert made["optimizer"]["learning_rates"]["head"] == 0.00123
    assert made["protocol"] == plain(load_config(tiny_run))["protocol"]


def test_an_experiment_of_an_experiment_has_the_effect_of_both(tmp_path):
    typed = ["experiment=paper", "data=glyphs", "optimizer=finetune", "loss=triplet", "embedding.size=32"]
    write_experiment(tmp_path / "experiment" / "best.yaml", typed, trials=3)
    made = plain(Freezer(config_dir=str(tmp_path)).freeze(["experiment=best"], tmp_path).config)
    wanted = plain(load_config(typed, run_folder=str(tmp_path)))
    assert essential(made) == essential(wanted)
    assert wanted["trainer"]["max_epochs"] == 25, "the paper's"


DONE = """
import sys
from pathlib import Path
from unseen.tracking.record import RunRecord

found = {"validation": {"map_at_r": 0.5}}
RunRecord(choices={}, seed=0, config={}, split="", manifest="", seconds={}, metrics=found).save(
    Path(sys.argv[1]) / "record.json"
)
"""


def test_an_experiment_keeps_the_places_of_groups_and_references_to_other_keys(tiny_run, tmp_path):
    parts = ["loss=combined", "loss@loss.parts.pairs=contrastive", "+loss@loss.parts.third=triplet"]
    typed = [*tiny_run, *parts, "+loss.weights.third=0.5", "data.split_seed=${seed}", "seed=3"]
    assert write_experiment(tmp_path / "experiment" / "best.yaml", typed, trials=2) == []
    made = plain(Freezer(config_dir=str(tmp_path)).freeze(["experiment=best"], tmp_path).config)
    wanted = plain(load_config(typed, run_folder=str(tmp_path)))
    assert essential(made) == essential(wanted)
    again = plain(Freezer(config_dir=str(tmp_path)).freeze(["experiment=best", "seed=4"], tmp_path).config)
    assert (made["data"]["split_seed"], again["data"]["split_seed"]) == (3, 4)


def test_a_debug_is_no_part_of_an_experiment(tiny_run, tmp_path):
    typed = [*tiny_run, "debug=fast", "embedding.size=96"]
    assert write_experiment(tmp_path / "experiment" / "best.yaml", typed, trials=2) == ["debug=fast"]
    made = plain(Freezer(config_dir=str(tmp_path)).freeze(["experiment=best"], tmp_path).config)
    assert made["embedding"]["size"] == 96
    assert made["choices"]["debug"] is None
    assert "debug=fast" not in beside_own_groups(str(tmp_path), typed, trials=2)


@pytest.mark.slow
def test_workers_freeze_their_trials_one_after_another(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "command", lambda job, lock: [sys.executable, "-c", DONE, str(job.folder)])
    assert tune([*tiny_run, f"tune_folder={tmp_path}", "workers=3", "trials=6", "debug=fast"]) == 0
    assert "Left out: debug=fast" in capsys.readouterr().out
    [study] = tmp_path.iterdir()
    storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
    trials = optuna.load_study(study_name=study.name, storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    for frozen in study.glob("trials/*/job.yaml"):
        assert OmegaConf.load(frozen).run_folder == str(frozen.parent)


@pytest.mark.slow
def test_trials_never_look_at_test_classes_and_the_best_becomes_an_experiment(tiny_run, tmp_path, capsys):
    typed = [
        *tiny_run,
        f"tune_folder={tmp_path}",
        "protocol.class_fraction=0.5",
        "each=[ablation]",
        "ablation=baseline,gdfl",
        "trials=2",
        "optimizer.learning_rates.backbone=1e-3",
    ]
    assert tune(typed) == 0
    studies = sorted(path for path in tmp_path.iterdir())
    assert [path.name.split("_seed0_")[0] for path in studies] == [
        "folder_multi_similarity_baseline",
        "folder_multi_similarity_gdfl",
    ]
    for study in studies:
        records = [RunRecord.load(file) for file in study.glob("trials/*/record.json")]
        assert len(records) == 2
        assert [set(record.metrics) for record in records] == [{"validation"}] * 2
        assert len({record.config["optimizer"]["learning_rates"]["head"] for record in records}) == 2
        assert {record.config["optimizer"]["learning_rates"]["backbone"] for record in records} == {1e-3}
        assert not list(study.glob("trials/*/queries.npz"))
        assert not list(study.glob("trials/*/checkpoints"))
        best = Freezer(config_dir=str(study)).freeze(["experiment=best"], study).config
        heads = [record.config["optimizer"]["learning_rates"]["head"] for record in records]
        assert best.optimizer.learning_rates.head in heads
    capsys.readouterr()
    assert tune(typed) == 0  # spent: nothing runs again
    assert "2/2" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_and_its_trial_are_killed_and_the_same_command_goes_on(small, unseen, misbehaving, tmp_path):
    of_jobs = [word for word in small if not word.startswith("sweep_folder")]
    typed = [*of_jobs, "ablation=gdfl", "protocol=holdout", "protocol.class_fraction=0.5", "trials=2"]
    typed += ["tune_folder=search", *misbehaving("Dies", marker=tmp_path / "died")]
    status, output = unseen("tune", *typed)
    assert status == -signal.SIGKILL, output
    [study] = (tmp_path / "search").iterdir()
    [begun] = study.glob("trials/*/checkpoints/last.ckpt")
    assert not list(study.glob("trials/*/record.json"))
    status, output = unseen("tune", *typed)
    assert status == 0, output
    records = {path.parent: RunRecord.load(path) for path in study.glob("trials/*/record.json")}
    assert len(records) == 2, "the trial that was killed counts once"
    assert records[begun.parents[1]].resumed_from.endswith("last.ckpt")
    assert [record.resumed_from for folder, record in records.items() if folder != begun.parents[1]] == [None]
