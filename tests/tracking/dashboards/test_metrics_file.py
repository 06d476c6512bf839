"""`metrics.csv` is whole when a run was resumed, as if it had never stopped."""

import csv

import pytest

from unseen.tracking.dashboards import log_results
from unseen.tracking.dashboards.metrics_file import MetricsFile


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [
        (int(row["step"]), {name: float(value) for name, value in row.items() if value and name != "step"})
        for row in found
    ]


def write(folder, steps, earlier=None, first=0.0):
    logger = MetricsFile(folder, earlier)
    for step in steps:
        logger.log_metrics({"train/loss": first + step, **({"lr": 0.5} if step % 2 else {})}, step)
        logger.save()
    return logger


@pytest.fixture
def stopped(tmp_path):
    """Five steps, then another metric."""
    logger = write(tmp_path / "a", range(5))
    logger.log_metrics({"validation/map_at_r": 0.25}, 4)
    logger.save()
    return tmp_path / "a"


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_run_that_goes_on_keeps_its_past_and_repeats_none_of_it(stopped, tmp_path, place):
    before = rows(stopped)
    write(tmp_path / place, range(3, 6), stopped / "metrics.csv", first=100)
    after = rows(tmp_path / place)
    assert after[:3] == before[:3]
    assert [(step, values["train/loss"]) for step, values in after[3:]] == [(3, 103), (4, 104), (5, 105)]
    if place != "a":
        assert rows(stopped) == before, "the other run's own file stays"


def test_a_run_that_is_killed_before_it_logs_loses_nothing(stopped):
    before = rows(stopped)
    MetricsFile(stopped, stopped / "metrics.csv").log_hyperparams({"seed": 0})
    assert rows(stopped) == before


def test_costs_are_no_column(tmp_path):
    log_results([logger := MetricsFile(tmp_path)], {"unseen/map_at_r": 0.5, "cost/train_seconds": 9.0}, 3)
    logger.save()
    assert rows(tmp_path) == [(3, {"unseen/map_at_r": 0.5})]


def test_a_run_of_its_own_begins_anew(stopped):
    write(stopped, range(2))
    assert [step for step, _ in rows(stopped)] == [0, 1]


@pytest.mark.parametrize("content", [None, "", "no table\n1\n", "step,train/loss\nx,1\n"])
def test_a_past_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "old.csv").write_text(content)
    write(tmp_path / "b", range(2), tmp_path / "old.csv")
    assert [step for step, _ in rows(tmp_path / "b")] == [0, 1]
