"""A dashboard is online only with a key, says so when it is not, and is closed whatever happens."""

import logging

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.tracking.dashboards import (
    finish,
    has_wandb_key,
    log_pictures,
    log_results,
    wandb_logger,
)
from unseen.workflow.run import execute


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads the environment once a process
    return tmp_path / "netrc"


def test_a_key_is_found_in_the_environment_or_in_the_netrc_file(monkeypatch, no_key):
    assert not has_wandb_key()
    no_key.write_text("machine api.elsewhere.example login user password secret\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    no_key.write_text("machine wandb.example login user password secret\n")
    assert has_wandb_key()
    no_key.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_wandb_key()


@pytest.mark.slow
def test_without_a_key_it_is_offline_and_says_so(no_key, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        logger = wandb_logger("project", str(tmp_path / "run"), "group", ["loss:triplet"])
    assert "offline" in caplog.text
    assert "wandb sync" in caplog.text
    logger.experiment.log({"a": 1})
    assert logger.experiment.settings.mode in ("offline", "dryrun")
    assert set(logger.experiment.tags) == {"loss:triplet"}
    finish([logger], "success")
    assert wandb.run is None
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_a_disabled_dashboard_writes_nothing(no_key, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger("project", str(tmp_path / "run"), "group", [])
    log_results([logger], {"unseen/recall_at_1": 0.5}, step=3)
    finish([logger], "success")
    assert "offline" not in caplog.text
    assert not list((tmp_path / "run").rglob("*.wandb"))


@pytest.mark.slow
def test_a_failing_run_is_closed_so_that_the_next_starts_its_own(no_key, tmp_path, tiny_run, monkeypatch):
    overrides = [*tiny_run, "sampler.classes_per_batch=4", "logger=wandb", "pictures=false"]
    run = build(load_config(overrides, run_folder=tmp_path / "first"))
    monkeypatch.setattr(
        run.learner, "training_step", lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))
    )
    with pytest.raises(RuntimeError, match="broken"):
        execute(run)
    assert wandb.run is None
    execute(build(load_config(overrides, run_folder=tmp_path / "second")))
    assert wandb.run is None
    for name in ("first", "second"):
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1


def test_results_and_pictures_reach_tensorboard(tmp_path):
    Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(tmp_path / "sheet.png")
    loggers = [
        CSVLogger(tmp_path, name="", version="csv"),
        TensorBoardLogger(str(tmp_path), name="tb", version=""),
    ]
    log_results(loggers, {"unseen/recall_at_1": 0.5}, step=3)
    log_pictures(loggers, {"sheet": tmp_path / "sheet.png"})
    finish(loggers, "success")
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("unseen/recall_at_1")] == [(3, 0.5)]
    assert (events.Images("pictures/sheet")[0].width, events.Images("pictures/sheet")[0].height) == (6, 4)
    assert "unseen/recall_at_1" in (tmp_path / "csv" / "metrics.csv").read_text()
