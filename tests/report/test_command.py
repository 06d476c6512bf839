"""`unseen report` as a user types it."""

import csv
import inspect
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from unseen.config.command_line import config_folder
from unseen.report.comparison import compare


def report(*arguments, cwd):
    """Exit status and output."""
    result = subprocess.run(
        [sys.executable, "-m", "unseen", "report", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "80"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def sweep(record, tmp_path):
    for number, method in enumerate(("baseline", "full")):
        for seed in range(3):
            value = 0.3 + 0.05 * number + 0.001 * seed * number
            record(method, seed, value).save(tmp_path / "runs" / "sweep" / f"{method}_{seed}" / "record.json")
    return tmp_path / "runs" / "sweep"


@pytest.mark.slow
def test_one_command_prints_and_writes_the_comparison(sweep, tmp_path, record):
    record("full", 7, schema=1).save(sweep / "old" / "record.json")
    (sweep / "to do").mkdir()
    (sweep / "to do" / "job.yaml").touch()
    status, output = report(cwd=tmp_path)
    assert status == 0, output
    assert "MAP@R, unseen classes, %: cub · triplet" in output
    assert "better" in output
    assert "Left out: " in output
    assert "schema 1" in output
    assert "Jobs without a record yet: 1." in output
    assert "6 finished runs. Written to runs/report" in output
    written = set(os.listdir(tmp_path / "runs" / "report"))
    assert {"comparison.csv", "overall.csv", "runs.csv", "comparison.md", "comparison.tex"} <= written
    assert "comparison.html" in written
    with (tmp_path / "runs" / "report" / "comparison.csv").open() as file:
        [full] = [
            line
            for line in csv.DictReader(file)
            if (line["ablation"], line["metric"]) == ("full", "map_at_r")
        ]
    assert float(full["difference"]) == pytest.approx(0.051)
    assert full["verdict"] == "better"
    assert not (tmp_path / "outputs").exists(), "Hydra leaves nothing"


@pytest.mark.slow
def test_every_key_reaches_the_comparison(sweep, tmp_path, record):
    for seed in range(2):
        record("gdfl", seed, config={"trainer.max_epochs": 9}).save(
            tmp_path / "more" / str(seed) / "record.json"
        )
    status, output = report(
        f"runs=[{sweep},{tmp_path / 'more'}]",
        "compare=fusion",
        "reference=attention",
        "by=[recall_at_1]",
        "margin=0.02",
        "cells=[data,adversary]",
        "level=0.9",
        "split=untrained",
        f"output={tmp_path / 'there'}",
        cwd=tmp_path,
    )
    assert status == 0, output
    assert "Recall@1, unseen, before training, %" in output
    assert "MAP@R" not in output
    assert "Intervals are of 90 %" in output
    assert "margin of 2 points" in output
    assert (tmp_path / "there" / "comparison.tex").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs=nowhere"], ["'nowhere' is not a folder"]),
        (["compare=ablatoin"], ["compare=ablatoin", "ablation (baseline, full)"]),
        (["by=[map]"], ["'map'", "map_at_r, recall_at_1"]),
        (["margin=half"], ["'margin' takes a number"]),
    ],
)
def test_what_cannot_be_is_said_in_words(arguments, words, sweep, tmp_path):
    status, output = report(*arguments, cwd=tmp_path)
    assert status == 2
    assert output.startswith("error: ")
    assert "Traceback" not in output
    for word in words:
        assert word in output
    assert not (tmp_path / "runs" / "report").exists()


def test_defaults_of_the_command_are_the_library_s():
    config = OmegaConf.load(config_folder() / "report.yaml")
    names = {"compare": "compare", "reference": "reference", "by": "metrics", "margin": "margin"}
    names |= {"split": "split", "cells": "cells", "level": "level"}
    parameters = inspect.signature(compare).parameters
    for key, name in names.items():
        value = config[key]
        default = parameters[name].default
        assert (tuple(value) if isinstance(default, tuple) else value) == default
