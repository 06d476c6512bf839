"""Dashboards without accounts, and the runs of a tiny training that leave something to show."""

import sys
from pathlib import Path

import pytest
import wandb

sys.path.insert(0, str(Path(__file__).parent))  # for `wandb_file`


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """No W&B key anywhere; the path where a netrc file would be found."""
    for name in (
        "API_KEY",
        "MODE",
        "BASE_URL",
        "PROJECT",
        "ENTITY",
        "NAME",
        "RUN_GROUP",
        "RUN_ID",
        "SWEEP_ID",
    ):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_own"))
    wandb.teardown()  # it reads the environment once a process
    yield tmp_path / "netrc"
    wandb.teardown()


@pytest.fixture(scope="session")
def shown_run(tiny_run):
    """Overrides of a tiny run of two epochs, one of whose classes validates."""
    return [
        *tiny_run, "sampler.classes_per_batch=2", "protocol=holdout", "protocol.class_fraction=0.4",
        "trainer.max_epochs=2", "evaluation.draws=2", "evaluation.resamples=0", "evaluation.probe_classes=0",
    ]  # fmt: skip
