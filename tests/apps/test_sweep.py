"""A sweep as a user types it: what is killed goes on, what fails is tried again, nothing is done twice."""

import json
import signal
import time

import pytest

from unseen.config.freeze import Freezer
from unseen.sweep.job import State
from unseen.sweep.lock import locked
from unseen.tracking.record import RunRecord


def records(folder):
    found = [RunRecord.load(path) for path in sorted(folder.glob("*/record.json"))]
    return {(record.choices["ablation"], record.seed): record for record in found}


def frozen(small, folder, *own):
    return (
        Freezer().freeze([*(word for word in small if not word.startswith("sweep_folder")), *own], folder).job
    )


@pytest.mark.slow
def test_a_sweep_and_its_job_are_killed_and_go_on_as_if_nothing_had_been(
    small, unseen, misbehaving, tmp_path
):
    grid = [*small, "seed=0,1", "ablation=gdfl"]
    status, output = unseen("sweep", *grid, "seed=0", "sweep_folder=whole")
    assert status == 0, output
    whole = records(tmp_path / "whole")["gdfl", 0]
    dies = misbehaving("Dies", marker=tmp_path / "died")
    status, _ = unseen("sweep", *grid, *dies)
    assert status == -signal.SIGKILL
    first = frozen(small, tmp_path / "sweep", "seed=0", "ablation=gdfl")
    assert first.state == State.INTERRUPTED
    status, output = unseen("sweep", *grid, *dies, "dry_run=true")
    assert "2 jobs: 1 interrupted, 1 to do" in output
    status, output = unseen("sweep", *grid, *dies)
    assert status == 0, output
    again = records(tmp_path / "sweep")
    assert again.keys() == {("gdfl", 0), ("gdfl", 1)}
    resumed = again["gdfl", 0]
    assert resumed.resumed_from.endswith("last.ckpt")
    assert resumed.metrics == whole.metrics
    assert resumed.steps == whole.steps == 6
    assert resumed.job_key == whole.job_key == first.key, "the sweep names a job as the run names itself"
    status, output = unseen("sweep", *grid)
    assert (status, "2 jobs: 2 done." in output) == (0, True), output
    assert len(first.attempts) == 1, "what is done is not done again"


@pytest.mark.slow
def test_a_job_that_fails_ends_no_other_and_is_tried_again(small, unseen, misbehaving, tmp_path):
    marker = tmp_path / "full"
    marker.touch()
    jobs = [*small, "loss=proxy_anchor,triplet", "miner=hard", *misbehaving("Fails", marker=marker)]
    status, output = unseen("train", "--multirun", *jobs)
    assert status == 1
    assert "1/2 loss=proxy_anchor failed after" in output
    assert "miner is BatchHardMiner" in output, "refused when it is built"
    assert "2/2 loss=triplet failed after" in output, "and the other one still ran"
    assert "RuntimeError: the disk is full" in output
    assert "Traceback" not in output
    marker.unlink()
    status, output = unseen("train", "--multirun", *jobs)
    assert status == 1
    assert "2 jobs: 2 failed" in output
    assert "2/2 loss=triplet done" in output
    [folder] = tmp_path.glob("sweep/folder_triplet_*")
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [attempt["status"] for attempt in attempts] == ["failed", "success"]
    assert attempts[0]["error"].startswith("RuntimeError: the disk is full"), "the error is kept"
    assert "Traceback" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_two_sweeps_at_once_do_each_job_once_with_a_wandb_run_of_its_own(small, start, misbehaving, tmp_path):
    words = ["sweep", *small, "ablation=baseline,cann", "logger=wandb", *misbehaving("Slow")]
    offline = {"WANDB_API_KEY": "", "NETRC": "/nonexistent", "WANDB_SILENT": "true"}
    both = [start(*words, **offline), start(*words, **offline)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {ablation for ablation, _ in records(tmp_path / "sweep")} == {"baseline", "cann"}
    for folder in (tmp_path / "sweep").glob("folder_*"):
        assert len((folder / "attempts.jsonl").read_text().splitlines()) == 1
        assert (folder / "log.txt").read_text().count("Everything is in") == 1
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1


@pytest.mark.slow
def test_a_job_that_another_process_has_is_left_to_it(small, unseen, tmp_path):
    words = ["sweep", *small, "ablation=baseline,gdfl"]
    job = frozen(small, tmp_path / "sweep", "ablation=baseline")
    job.folder.mkdir(parents=True)
    with locked(job.folder):
        status, output = unseen(*words)
    assert status == 0, output
    assert "2 jobs: 1 running, 1 to do." in output
    assert "2 jobs: 1 done, 1 running." in output
    assert {ablation for ablation, _ in records(tmp_path / "sweep")} == {"gdfl"}


@pytest.mark.slow
def test_ctrl_c_stops_at_a_step_and_the_sweep_goes_on(small, start, misbehaving, tmp_path):
    words = ["sweep", *small, "seed=0,1", "trainer.max_epochs=6", *misbehaving("Slow")]
    process = start(*words)
    job = frozen(small, tmp_path / "sweep", "seed=0", "trainer.max_epochs=6")
    while not job.checkpoints:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "2 jobs: 1 interrupted, 1 to do" in output
    assert job.state == State.INTERRUPTED, "and nobody is at it any more"
    assert [attempt.status for attempt in job.attempts] == ["interrupted"]


@pytest.mark.slow
def test_a_dry_run_writes_nothing(small, unseen, tmp_path):
    status, output = unseen("sweep", "sweep=ablation", *small, "seed=0,1", "dry_run=true")
    assert status == 0, output
    assert "8 jobs: 8 to do." in output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=ablatio"], "did you mean 'ablation'"),
        (["sweep=ablation", "loss=triplet,tripplet"], "did you mean 'triplet'"),
        (["ablation=full,baseline", "adversary.hidden=9"], "there is no 'adversary' with"),
        (["launcher=joblib", "launcher.jobs=0"], "launcher.jobs=0: wanted a whole number"),
        (["launcher.jobs=2"], "launcher.jobs"),
        (["lock=flock"], "auto, kernel, lease"),
        (["data.root=/nowhere", "seed=0,1"], "/nowhere"),
        (["protocol=folds", "protocol.fold=0,9"], "protocol.fold=9"),
        (["seed=0,1", "metrics.similarity=cosine,euclidean"], "differ in metrics alone"),
        (["threads=1,2"], "differ in threads alone"),
    ],
)
def test_what_any_job_cannot_be_is_refused_before_the_first_one(small, unseen, tmp_path, words, message):
    status, output = unseen("sweep", *small, *words)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "sweep").exists()


def test_only_training_sweeps(unseen):
    status, output = unseen("check", "--multirun", "data=glyphs,cub")
    assert status == 2
    assert "unseen sweep" in output


def test_a_job_needs_its_folder(unseen, tmp_path):
    assert unseen("job")[0] == 2
    status, output = unseen("job", tmp_path)
    assert status == 2
    assert "job.yaml" in output
