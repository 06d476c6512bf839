"""A grid does each job once, and drops none that does something else."""

import shutil

import pytest

from unseen.config.freeze import Freezer
from unseen.config.sweep import _distinct
from unseen.config.values import UsageError


@pytest.fixture
def distinct(tiny_run, tmp_path):
    """`distinct([word, …], …)`: the jobs of a grid with these overrides."""
    freezer = Freezer()
    return lambda *jobs: _distinct([freezer.freeze([*tiny_run, *words], tmp_path) for words in jobs])


def test_a_job_in_other_words_is_one_job(distinct):
    assert len(distinct(["seed=0"], [], ["seed=1"])) == 2
    named, spelled = ["ablation=baseline"], ["ablation=custom", "adversary=none", "fusion=last"]
    [job] = distinct(named, spelled)
    assert job.config.choices.ablation == "baseline"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("metrics.similarity=euclidean", "metrics"),
        ("callbacks=default", "callbacks, trainer.enable_progress_bar, trainer.enable_model_summary"),
        ("logger=tensorboard", "logger"),
        ("pictures=false", "pictures"),
        ("check_from=0", "check_from"),
        ("data.workers=1", r"data\.workers"),
        ("trainer.devices=2", r"trainer\.devices"),
    ],
)
def test_jobs_that_differ_in_what_changes_nothing_that_is_trained_are_refused(distinct, words, name):
    with pytest.raises(UsageError, match=rf"differ in {name} alone, which changes nothing that is trained"):
        distinct([], [words])


def test_the_same_names_in_another_folder_are_not_taken_for_the_same_images(
    distinct, coloured_tree, tmp_path
):
    other = shutil.copytree(coloured_tree, tmp_path / "other")
    with pytest.raises(UsageError, match=r"differ in data\.root alone, and images are known by their paths"):
        distinct([], [f"data.root={other}"])
