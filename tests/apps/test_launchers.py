"""Jobs on other launchers, each in its own process there: submitit on this machine, Ray on two nodes."""

import datetime
import signal
import time

import psutil
import pytest
from rich.console import Console

from unseen.config.freeze import Freezer
from unseen.sweep.job import State
from unseen.sweep.launchers.ray import Ray
from unseen.sweep.launchers.slurm import Slurm
from unseen.tracking.record import RunRecord


@pytest.fixture
def frozen(small, misbehaving, tmp_path):
    """`frozen(seed)`: a job that takes at least three seconds."""

    def make(seed):
        of_job = [word for word in small if not word.startswith("sweep_folder")]
        one = Freezer().freeze([*of_job, *misbehaving("Slow"), f"seed={seed}"], tmp_path / "sweep")
        one.save()
        return one.job

    return make


def until(condition, seconds=120):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.slow
def test_a_preempted_job_of_submitit_is_queued_again_and_goes_on(frozen, capsys):
    pytest.importorskip("submitit")
    job = frozen(0)
    launcher = Slurm(
        "local", max_requeues=3, parameters={"timeout_min": 5, "gpus_per_node": 0, "mem_gb": None}
    )
    [outcome] = launcher([job], "auto", Console())
    assert outcome.status is None, "submitted, and left"
    assert "is queued as" in capsys.readouterr().out
    until(lambda: job.checkpoints)
    assert job.state == State.RUNNING
    begun = psutil.Process().children(recursive=True)
    [task] = [one for one in begun if "submitit.core._submit" in one.cmdline()]
    task.send_signal(signal.SIGUSR2)
    until(lambda: job.state == State.DONE)
    assert [attempt.status for attempt in job.attempts] == ["interrupted", "success"]
    record = RunRecord.load(job.folder / "record.json")
    assert record.resumed_from is not None
    assert record.steps == 6


@pytest.mark.slow
def test_two_nodes_of_ray_take_a_job_each(frozen):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    jobs = [frozen(seed) for seed in (0, 1)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        outcomes = Ray(address=None, cpus=1, gpus=0)(jobs, "auto", Console(quiet=True))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [outcome.status for outcome in outcomes] == [0, 0]
    spans = []
    for job in jobs:
        [attempt] = job.attempts
        end = datetime.datetime.fromisoformat(attempt.finished).timestamp()
        spans.append((end - attempt.seconds, end))
    assert max(start for start, _ in spans) < min(end for _, end in spans), "at once, one core a node"
