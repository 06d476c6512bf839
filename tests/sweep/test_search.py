"""A search with jobs that compute a known function: what it finds, prunes, survives and never does twice."""

import functools
import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from unseen.sweep import process
from unseen.sweep.job import Job
from unseen.sweep.search import Choice, Interval, Study, course, value_of
from unseen.tracking.record import RunRecord

JOB = """
import json, sys, time
from pathlib import Path
from unseen.sweep.lock import BUSY, BusyError, locked
from unseen.tracking.record import RunRecord

folder = Path(sys.argv[1])
x, kind = json.loads((folder / "values.json").read_text())

def record(**changes):
    content = dict(choices={}, seed=0, config={}, split="", manifest="", metrics={})
    RunRecord(**content | {"seconds": {"train_total": 2.0}} | changes).save(folder / "record.json")

try:
    with locked(folder, "kernel"):
        if (folder / "record.json").exists() and kind != "broken":
            sys.exit(0)
        with (folder / "starts").open("a") as file:
            file.write("x")
        if kind == "broken":
            record(status="failed", error="ValueError: it broke")
            sys.exit(1)
        value = 1 - (x - 0.3) ** 2
        rows = "epoch,step,validation/map_at_r\\n"
        for epoch in range(4):
            rows += f"{epoch},{epoch},{value * (epoch + 1) / 4}\\n"
            (folder / "metrics.csv").write_text(rows)
            time.sleep({"slow": 1.5, "endless": 60}.get(kind, 0))
        found = {"map_at_r": value, "recall_at_1": 1 - value}
        record(metrics={"validation": found}, parameters=int(1000 * x))
except BusyError:
    sys.exit(BUSY)
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`make(trials, space, …)`: a study whose jobs are processes that compute 1 − (x − 0.3)²."""
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))
    monkeypatch.setattr(process, "command", lambda job, lock: [sys.executable, str(script), str(job.folder)])

    def study(trials=8, space=None, **changes):
        lines = []
        arguments = {
            "folder": tmp_path / "study",
            "space": space or {"x": Interval(0.0, 1.0)},
            "objectives": {"map_at_r": "maximize"},
            "trials": trials,
            "freeze": functools.partial(freeze, tmp_path / "study" / "trials"),
            "sampler": optuna.samplers.TPESampler,
            "pruner": None,
            "lock": "kernel",
            "say": lines.append,
        }
        made = Study(**(arguments | changes))
        made.lines = lines
        return made

    return study


def freeze(root, overrides):
    """A job that its values name, as a real one's key does."""
    values = dict(word.split("=") for word in overrides)
    if values.get("kind") == "impossible":
        raise ValueError("kind=impossible: cannot be.")
    folder = root / "_".join(overrides)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "values.json").write_text(f'[{values.get("x", 0.5)}, "{values.get("kind", "plain")}"]')
    return Job(folder.name, "0" * 16, folder)


def states(study):
    return Counter(trial.state for trial in study.study.trials)


def starts(study):
    return [len(file.read_text()) for file in study.folder.glob("trials/*/starts")]


@pytest.mark.slow
def test_it_finds_the_optimum_within_the_budget_and_goes_on_where_it_stopped(make):
    make(6).run()
    study = make(20)
    assert len(study.study.trials) == 6
    study.run()
    assert len(study.study.trials) == 20
    assert starts(study) == [1] * 20
    (best,) = study.best
    assert abs(best.params["x"] - 0.3) < 0.15
    assert best.values[0] == pytest.approx(1 - (best.params["x"] - 0.3) ** 2)
    # Proposals go on after a restart instead of beginning again.
    assert len({trial.params["x"] for trial in study.study.trials}) == 20
    study.run()
    assert len(study.study.trials) == 20


@pytest.mark.slow
def test_a_trial_that_breaks_or_cannot_be_is_told_as_failed_with_its_error(make):
    study = make(6, {"kind": Choice(("plain", "broken", "impossible"))}, sampler=InTurn)
    study.run()
    assert states(study) == {TrialState.COMPLETE: 2, TrialState.FAIL: 4}
    errors = {trial.user_attrs.get("error") for trial in study.study.trials}
    assert errors == {None, "ValueError: it broke", "kind=impossible: cannot be."}
    assert [trial.params["kind"] for trial in study.complete] == ["plain", "plain"]


class InTurn(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, param_name, param_distribution):
        choices = param_distribution.choices
        return choices[trial.number % len(choices)]


@pytest.mark.slow
def test_two_trials_that_are_one_job_wait_for_it(make):
    study = make(3, {"kind": Choice(("slow", "other"))}, sampler=Same)
    study.run(workers=3)
    assert states(study) == {TrialState.COMPLETE: 3}
    assert len({trial.values[0] for trial in study.study.trials}) == 1
    assert starts(study) == [1]


class Same(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, param_name, param_distribution):
        return "slow"


@pytest.mark.slow
def test_a_free_worker_does_not_wait_for_a_slow_trial(make):
    study = make(5, {"x": Interval(0.0, 1.0), "kind": Choice(("slow", "plain"))}, sampler=SlowFirst)
    study.run(workers=2)
    slow, _, third = study.study.trials[:3]
    assert slow.params["kind"] == "slow"
    # Who had the second took the third; when the others end depends on how busy the machine is.
    assert third.datetime_start < slow.datetime_complete


class SlowFirst(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, param_name, param_distribution):
        if param_name == "kind":
            return "slow" if trial.number == 0 else "plain"
        return super().sample_independent(study, trial, param_name, param_distribution)


@pytest.mark.slow
def test_a_trial_below_the_median_is_ended_early(make):
    class Worse(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            if param_name == "kind":
                return "slow" if trial.number == 4 else "plain"
            return [0.3, 0.31, 0.32, 0.33, 0.99][trial.number]

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    space = {"x": Interval(0.0, 1.0), "kind": Choice(("slow", "plain"))}
    study = make(5, space, sampler=Worse, pruner=pruner)
    study.run()
    assert [trial.state for trial in study.study.trials][4] == TrialState.PRUNED
    assert not list(study.folder.glob("trials/x=0.99*/record.json"))
    assert "pruned after epoch" in study.lines[-1]


@pytest.mark.slow
def test_several_objectives_give_those_that_none_beats_in_all(make):
    study = make(12, objectives={"map_at_r": "maximize", "parameters": "minimize"})
    study.run()
    points = {trial.number: trial.values for trial in study.complete}
    beaten = {
        one
        for one, (value, size) in points.items()
        if any(v >= value and s <= size and (v, s) != (value, size) for v, s in points.values())
    }
    assert {trial.number for trial in study.best} == points.keys() - beaten


@pytest.mark.slow
def test_a_trial_whose_process_died_is_gone_on_with(make, tmp_path):
    study = make(3)
    trial = study.study.ask({"x": study.space["x"].distribution})
    job = study.freeze([f"x={trial.params['x']}"])
    trial.set_user_attr("folder", str(job.folder))
    again = make(3)
    again.run()
    assert states(again) == {TrialState.COMPLETE: 3}
    assert again.study.trials[0].values == [pytest.approx(1 - (trial.params["x"] - 0.3) ** 2)]


@pytest.mark.slow
def test_a_trial_whose_process_died_before_it_froze_the_job_is_gone_on_with(make):
    asked = make(2).study.ask({"x": Interval(0.0, 1.0).distribution})
    study = make(2)
    study.run()
    assert states(study) == {TrialState.COMPLETE: 2}
    assert study.study.trials[0].params == asked.params


def test_a_trial_that_another_process_told_while_its_job_was_frozen_stays_as_it_was_told(make, tmp_path):
    other = make(1)

    def late(overrides):
        other.study.tell(0, 0.25)
        return freeze(tmp_path / "study" / "trials", overrides)

    study = make(1, freeze=late)
    study.run()
    assert study.study.trials[0].values == [0.25]
    assert study.lines == ["1/1  trial 0: another process told its end"]
    assert not starts(study)


@pytest.mark.slow
def test_a_job_whose_trial_another_process_told_is_ended(make):
    study, other = make(1, {"kind": Choice(("slow", "plain"))}, sampler=SlowFirst), make(1)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(study.run)
        while not list(study.folder.glob("trials/*/metrics.csv")):
            time.sleep(0.05)
        other.study.tell(0, 0.25)
        run.result()
    assert study.study.trials[0].values == [0.25]
    assert study.lines == ["1/1  trial 0: another process told its end"]
    assert not list(study.folder.glob("trials/*/record.json"))


@pytest.mark.slow
def test_a_trial_that_another_process_has_is_left_alone(make):
    study = make(3, {"kind": Choice(("endless", "plain"))}, sampler=Plain)
    trial = study.study.ask({"kind": study.space["kind"].distribution})
    job = study.freeze(["kind=endless"])
    trial.set_user_attr("folder", str(job.folder))
    other = subprocess.Popen(process.command(job, "kernel"))
    while not (job.folder / "starts").exists():
        time.sleep(0.05)
    again = make(3, {"kind": Choice(("endless", "plain"))}, sampler=Plain)
    again.run()
    is_alive = other.poll() is None
    other.kill()
    other.wait()
    assert is_alive
    assert again.study.trials[0].state == TrialState.RUNNING
    assert starts(again) == [1, 1]


class Plain(optuna.samplers.RandomSampler):
    def sample_independent(self, study, trial, param_name, param_distribution):
        return "plain"


def test_processes_that_ask_together_propose_differently_and_keep_the_budget(make):
    asking = threading.Barrier(2)

    def sampler(seed):
        with suppress(threading.BrokenBarrierError):
            asking.wait(timeout=1)
        return optuna.samplers.RandomSampler(seed)

    def no_job(overrides):
        raise ValueError("it is the questions that matter")

    studies = [make(3, sampler=sampler, freeze=no_job) for _ in range(2)]
    together(studies)
    trials = studies[0].study.trials
    assert len(trials) == 3
    assert len({trial.params["x"] for trial in trials}) == 3


@pytest.mark.slow
def test_a_trial_is_one_process_s_from_its_question_to_its_end(make, tmp_path):
    frozen = []

    def counted(overrides):
        frozen.append(overrides)
        return freeze(tmp_path / "study" / "trials", overrides)

    studies = [make(4, freeze=counted) for _ in range(2)]
    together(studies)
    assert states(studies[0]) == {TrialState.COMPLETE: 4}
    assert len(frozen) == 4, "nobody takes up a trial whose job has not begun yet"
    assert all(study.lines for study in studies), "both take part"


def together(studies):
    """Run studies of one folder as processes would; what they share they share by files."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(study.run) for study in studies]:
            done.result()


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_moves_the_objective_is_important_whichever_end_is_good(make, direction):
    space = {"good": Interval(0.0, 1.0), "bad": Interval(0.0, 1.0)}
    study = make(space=space, objectives={"map_at_r": direction})
    parts = {key: part.distribution for key, part in space.items()}
    for good, bad in itertools.product(np.linspace(0.05, 0.95, 7), repeat=2):
        value = 3.0 * (good > 0.8) - 1.0 * (bad > 0.8)
        study.study.add_trial(
            optuna.create_trial(params={"good": good, "bad": bad}, distributions=parts, value=value)
        )
    shares = study.importances()
    # Of a sum each part's share is its variance's.
    assert shares["good"] == pytest.approx(0.9, abs=0.05)
    assert shares["bad"] == pytest.approx(0.1, abs=0.05)
    assert shares == study.importances()


def test_what_cannot_be_sought_is_refused_in_words(make):
    with pytest.raises(ValueError, match=r"objectives\.map_at_r=up: choices are maximize, minimize"):
        make(objectives={"map_at_r": "up"})
    with pytest.raises(ValueError, match=r"interval\(2,1\): wanted a lower and a higher end"):
        Interval(2, 1)
    with pytest.raises(ValueError, match=r"interval\(0,1\): a logarithmic one starts above 0"):
        Interval(0, 1, log=True)
    record = RunRecord(
        choices={}, seed=0, config={}, split="", manifest="", seconds={},
        metrics={"validation": {"map_at_r": float("nan")}},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"objectives\.map_at_r: .* It has: map_at_r, seconds"):
        value_of(record, "map_at_r")


def test_the_course_of_a_metric_leaves_out_what_is_not_whole(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,validation/a,train/b\n0,3,0.5,\n0,4,,2\n1,7,0.75,\n2,9,0.\n3")
    assert course(file, "validation/a") == {0: 0.5, 1: 0.75, 2: 0.0}
    assert course(file, "validation/none") == {}
