"""Whole runs as their dashboards hold them, without a network: finished, failed, killed, resumed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from mlflow.tracking import MlflowClient
from wandb_file import read, read_file

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.workflow.run import execute

pytestmark = pytest.mark.slow
BOTH = ["logger=[wandb,mlflow,tensorboard]", "logger.wandb.log_model=true", "logger.wandb.tags=[mine]"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of its own for stores, without keys."""
    folder = tmp_path_factory.mktemp("dashboards")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_SILENT", "true")
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / "wandb_own"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/store/mlflow.db")
        wandb.teardown()
        yield folder
        wandb.teardown()


def broken(self, *_):
    raise RuntimeError("broken")


@pytest.fixture(scope="module")
def failed(work, shown_run):
    """A run that breaks in its second epoch."""
    run = build(load_config([*shown_run, *BOTH], run_folder=work / "failed"))
    step = run.learner.training_step
    run.learner.training_step = lambda *batch: (
        broken(None) if run.trainer.current_epoch == 1 else step(*batch)
    )
    with pytest.raises(RuntimeError, match="broken"):
        execute(run)
    assert wandb.run is None
    return work / "failed"


@pytest.fixture(scope="module")
def resumed(work, shown_run, failed):
    """The same, gone on from its checkpoint in another folder, to its end."""
    checkpoint = sorted((failed / "checkpoints").glob("*.ckpt"))[0]
    overrides = [*shown_run, *BOTH, f"resume_from='{checkpoint}'"]
    execute(build(load_config(overrides, run_folder=work / "resumed")))
    return work / "resumed"


@pytest.fixture(scope="module")
def again(work, shown_run, failed):
    """The first command once more, in the folder where it failed."""
    execute(build(load_config([*shown_run, *BOTH, "pictures=false"], run_folder=failed)))
    return failed


def stored(id):
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("unseen").experiment_id
    return client, client.search_runs([experiment], f"tags.`unseen.id` = '{id}'", order_by=["start_time"])


def test_a_failed_run_is_marked_as_failed_and_shows_how_far_it_came(failed):
    found = read(failed)
    assert found.exit_code == 1
    assert found.config["run"]["job_key"] == json.loads((failed / "record.json").read_text())["job_key"]
    assert [row["epoch"] for row in found.history if "train/loss" in row] == [0]
    best = found.summary["validation/map_at_r"]["max"]
    assert 0 <= best <= 1
    assert "unseen/map_at_r" not in found.summary


def test_the_run_is_named_grouped_and_described_for_people(resumed):
    found, record = read(resumed), json.loads((resumed / "record.json").read_text())
    assert found.run.project == "unseen"
    assert found.run.display_name.startswith("folder · multi_similarity · gdfl · ")
    assert found.run.display_name.endswith(" · s0")
    assert found.run.run_group.startswith("folder · multi_similarity · gdfl · ")
    assert found.run.job_type == "train"
    assert set(found.run.tags) == {"data:folder", "loss:multi_similarity", "ablation:gdfl", "seed:0", "mine"}
    assert found.config["optimizer"]["learning_rates"]["backbone"] > 0, "nested"
    assert found.config["choices"]["loss"] == "multi_similarity"
    facts = found.config["run"]
    assert facts["command"].startswith("unseen train ")
    assert facts["split"] == record["split"]
    assert facts["parameters"] == record["parameters"] > 0
    assert facts["commit"] == record["environment"]["commit"]


def test_epochs_are_the_axis_and_final_results_are_flat_columns(resumed):
    found, record = read(resumed), json.loads((resumed / "record.json").read_text())
    axes = {(metric.glob_name, metric.step_metric) for metric in found.metrics if metric.glob_name}
    assert {("train/*", "epoch"), ("validation/*", "epoch")} <= axes
    begins = [metrics.removesuffix("*") for metrics, _ in axes]
    assert not any(one != other and one.startswith(other) for one in begins for other in begins), (
        "either fits"
    )
    rows = [row for row in found.history if any(name.startswith(("train/", "validation/")) for name in row)]
    assert rows
    assert all("epoch" in row for row in rows)
    for split, metrics in record["metrics"].items():
        for metric, value in metrics.items():
            assert found.summary[f"{split}/{metric}"] == pytest.approx(value), "no NaN on the way"
    assert found.summary["cost/parameters"] == record["parameters"]
    assert not any("unseen/map_at_r" in row for row in found.history), "a curve of one point"
    assert found.exit_code == 0


def test_the_worst_queries_are_a_table_of_bounded_size_with_thumbnails(resumed):
    [artifact] = [artifact for artifact in read(resumed).artifacts if artifact.type == "run_table"]
    files = {part.path: Path(part.local_path) for part in artifact.manifest.contents}
    table = json.loads(files["worst_queries.table.json"].read_text())
    columns = {name: index for index, name in enumerate(table["columns"])}
    assert 0 < len(table["data"]) <= 32
    values = [row[columns["MAP@R"]] for row in table["data"]]
    assert values == sorted(values)
    first = table["data"][0]
    assert first[columns["query"]]["_type"] == "image-file"
    assert first[columns["query"]]["path"] in files
    assert max(first[columns["query"]][side] for side in ("width", "height")) <= 96
    assert first[columns["class"]].startswith("class ")
    assert first[columns["path"]].startswith(first[columns["class"]])
    nearest = first[columns["neighbour 1"]]["caption"]
    assert nearest.startswith("✓" if first[columns["first neighbour"]] == first[columns["class"]] else "✗")


def test_the_checkpoint_is_an_artifact_when_asked(resumed):
    models = [artifact for artifact in read(resumed).artifacts if artifact.type == "model"]
    assert models
    assert all(".ckpt" in artifact.manifest.contents[0].path for artifact in models)


def test_a_resumed_run_goes_on_in_the_run_it_resumes(failed, resumed):
    first, second = read(failed), read(resumed)
    assert first.run.run_id == second.run.run_id
    assert [row["epoch"] for row in second.history if "train/loss" in row][-1] == 1
    _, runs = stored(second.run.run_id)
    assert len(runs) == 1, "MLflow too"


def test_the_csv_of_a_resumed_run_has_both_parts_once(resumed):
    with (resumed / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows if row["train/loss"]] == [0, 1]
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)


def test_mlflow_holds_the_same_run(resumed):
    record = json.loads((resumed / "record.json").read_text())
    client, [run] = stored(read(resumed).run.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == read(resumed).run.display_name
    assert run.data.tags["group"] == read(resumed).run.run_group
    assert run.data.tags["loss"] == "multi_similarity"
    assert run.data.tags["job_type"] == "train"
    assert run.data.params["choices.ablation"] == "gdfl"
    assert run.data.params["run.split"] == record["split"]
    assert run.data.metrics["unseen/map_at_r"] == pytest.approx(record["metrics"]["unseen"]["map_at_r"])
    assert run.data.metrics["cost/parameters"] == record["parameters"]
    epochs = [point.value for point in client.get_metric_history(run.info.run_id, "epoch")]
    assert {0.0, 1.0} <= set(epochs), "both parts"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "pictures")}
    assert "pictures/neighbours.png" in names


def test_what_failed_and_is_repeated_in_its_folder_takes_its_place(resumed, again):
    files = sorted(again.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    first, second = map(read_file, files)
    assert first.run.run_id == second.run.run_id
    assert (first.exit_code, second.exit_code) == (1, 0)
    _, runs = stored(second.run.run_id)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"], (
        "MLflow cannot replace: it lists both"
    )


def test_a_killed_run_leaves_a_file_that_can_be_read_and_keeps_its_id(work, shown_run):
    command = [
        sys.executable, "-m", "unseen", "train", *shown_run, "logger=[wandb,mlflow]",
        "trainer.max_epochs=500", f"hydra.run.dir={work / 'killed'}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (work / "killed" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    identity = json.loads((work / "killed" / "dashboard.json").read_text())["id"]
    until = time.monotonic() + 30  # the process that writes for W&B ends when ours is gone
    found = read(work / "killed")
    while not any("validation/map_at_r" in row for row in found.history) and time.monotonic() < until:
        time.sleep(0.5)
        found = read(work / "killed")
    assert found.run.run_id == identity
    assert any("validation/map_at_r" in row for row in found.history)
    assert found.exit_code != 0
    _, [run] = stored(identity)
    assert run.info.status == "RUNNING", "MLflow has no sign of life of a run"
