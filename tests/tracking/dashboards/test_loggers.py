"""The steps of a run reach every logger; W&B is online only with a key, and says so when it is not."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unseen.tracking.dashboards import (
    RunCard,
    finish,
    log_pictures,
    log_projection,
    log_results,
    shows_errors,
)
from unseen.tracking.dashboards.wandb import has_key, wandb_logger

KEY = 40 * "0"
CHOICES = {"data": "glyphs", "loss": "triplet", "ablation": "full"}


@pytest.fixture
def card(tmp_path):
    return RunCard(CHOICES, [], {"seed": 3}, "0123456789abcdef", tmp_path / "run")


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_netrc_entry_for_either_of_wandbs_own_hosts_is_a_key(no_key, host):
    assert not has_key()
    no_key.write_text(f"machine {host} login user password {KEY}\n")
    assert has_key()


def test_a_key_for_another_host_is_none_unless_that_host_is_used(monkeypatch, no_key):
    no_key.write_text(f"machine wandb.example login user password {KEY}\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    wandb.teardown()
    assert has_key()


def test_a_key_is_found_in_the_environment_and_one_that_cannot_be_right_is_refused(monkeypatch, no_key):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key()
    monkeypatch.setenv("WANDB_API_KEY", "no key")
    wandb.teardown()
    with pytest.raises(ValueError, match=r"logger=wandb: WANDB_API_KEY invalid.*wandb login"):
        has_key()


def test_without_a_key_it_is_offline_and_says_so_each_time(no_key, card, caplog):
    for _ in range(2):  # the first must not decide for the second by the environment
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            logger = wandb_logger(card, project="project", tags=["mine", 99 * "x"])
        assert "offline" in caplog.text
        assert "wandb sync" in caplog.text
    run = logger.experiment
    assert run.settings.mode == "offline"
    assert set(run.tags) == {"data:glyphs", "loss:triplet", "ablation:full", "seed:3", "mine", 64 * "x"}
    assert run.name == "glyphs · triplet · full · s3"
    finish([logger], "success")
    assert wandb.run is None
    assert list((card.folder / "wandb").glob("offline-run-*"))


def test_the_environment_decides_what_no_key_says(no_key, card, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "my name")
    monkeypatch.setenv("WANDB_RUN_GROUP", "my group")
    monkeypatch.setenv("WANDB_RUN_ID", "my-id")
    run = wandb_logger(card, project="project", job_type="tune").experiment
    assert (run.name, run.group, run.id, run.job_type) == ("my name", "my group", "my-id", "tune")
    wandb.finish()
    run = wandb_logger(card, project="project", name="typed", id="typed").experiment
    assert (run.name, run.id) == ("typed", "typed")
    wandb.finish()


def test_a_disabled_dashboard_writes_nothing(no_key, card, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(card, project="project")
    log_results([logger], {"unseen/recall_at_1": 0.5}, step=3)
    finish([logger], "success")
    assert "offline" not in caplog.text
    assert not list(card.folder.rglob("*.wandb"))


def test_results_and_pictures_reach_tensorboard(tmp_path):
    Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(tmp_path / "sheet.png")
    loggers = [
        CSVLogger(tmp_path, name="", version="csv"),
        TensorBoardLogger(str(tmp_path), name="tb", version=""),
    ]
    log_results(loggers, {"unseen/recall_at_1": 0.5}, step=3)
    log_pictures(loggers, {"sheet": tmp_path / "sheet.png"})
    log_projection(loggers, np.eye(3), ["a", "b", "b"], torch.zeros(3, 3, 4, 4))
    assert not shows_errors(loggers)
    finish(loggers, "success")
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("unseen/recall_at_1")] == [(3, 0.5)]
    assert (events.Images("pictures/sheet")[0].width, events.Images("pictures/sheet")[0].height) == (6, 4)
    assert [path.read_text() for path in (tmp_path / "tb").rglob("metadata.tsv")] == ["a\nb\nb\n"]
    assert "unseen/recall_at_1" in (tmp_path / "csv" / "metrics.csv").read_text()


@pytest.mark.slow
def test_dashboards_that_are_not_used_are_not_loaded():
    code = "import sys, unseen.tracking.dashboards; print({'wandb', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
