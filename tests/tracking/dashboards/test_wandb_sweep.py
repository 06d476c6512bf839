"""The sweep file for W&B: what its agent would type is a command of ours that runs."""

import math
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils
from wandb_file import read

from unseen.config.command_line import check_overrides, load_config

SWEEP = yaml.safe_load((Path(__file__).parents[3] / "docs" / "wandb_sweep.yaml").read_text())


def agents_command(values):
    """As `wandb.wandb_agent.Agent` puts it together from what the server sends."""
    variables = utils.create_sweep_command_args(
        {"args": {key: {"value": one} for key, one in values.items()}}
    )
    variables |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [""]}
    words = []
    for word in utils.create_sweep_command(list(SWEEP["command"])):
        is_variable = word.startswith("${") and word.endswith("}")
        words += variables[word[2:-1]] if is_variable else [word]
    return words


def samples():
    """Both ends of what it may draw, and the middle; each of a few values at least once."""
    parts = [
        one["values"] if "values" in one else [one["min"], math.sqrt(one["min"] * one["max"]), one["max"]]
        for one in SWEEP["parameters"].values()
    ]
    most = max(map(len, parts))
    return [
        dict(zip(SWEEP["parameters"], (part[draw % len(part)] for part in parts), strict=True))
        for draw in range(most)
    ]


def test_every_command_of_an_agent_is_one_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    for values in samples():
        words = agents_command(values)
        assert words[:3] == ["/usr/bin/env", "unseen", "train"]
        check_overrides("train", words[3:])
    overrides = [word for word in words[3:] if not word.startswith("hydra.")]
    config = load_config(overrides, run_folder=str(tmp_path))
    assert (
        config.optimizer.learning_rates.backbone
        == SWEEP["parameters"]["optimizer.learning_rates.backbone"]["max"]
    )
    assert config.protocol.class_fraction > 0, "classes validate, so that the metric exists"


@pytest.mark.slow
def test_a_command_of_an_agent_runs_and_gives_the_metric_that_is_sought(typed, tmp_path, shown_run):
    words = agents_command(samples()[0])[3:]
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "swp123",
        "WANDB_RUN_ID": "run456",
        "WANDB_SILENT": "true",
    }
    result = typed("train", *words, *shown_run, "pictures=false", folder=tmp_path, environment=environment)
    assert result.returncode == 0, result.stderr
    found = read(tmp_path / "runs" / "wandb" / "run456")
    assert (found.run.run_id, found.run.sweep_id, found.run.job_type) == ("run456", "swp123", "tune")
    assert 0 <= found.summary[SWEEP["metric"]["name"]] <= 1
