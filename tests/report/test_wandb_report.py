"""The workspace and the report of W&B, as the JSON that would be sent; nothing is sent."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from wandb_workspaces.reports.v2 import Report
from wandb_workspaces.workspaces import Workspace

from unseen.report.comparison import compare
from unseen.report.runs import Run, Runs
from unseen.report.wandb_report import logged, publish, report, workspace

SNAPSHOTS = Path(__file__).with_name("snapshots")
METHODS = ("baseline", "full")


@pytest.fixture
def runs(record, tmp_path):
    """Two methods, two losses, two seeds; all but one run were logged."""
    found = []
    for method in METHODS:
        for loss in ("triplet", "arcface"):
            for seed in range(2):
                folder = tmp_path / f"{method}_{loss}_{seed}"
                folder.mkdir()
                if (method, loss, seed) != ("full", "arcface", 1):
                    (folder / "dashboard.json").write_text(json.dumps({"id": f"{method}-{loss}-{seed}"}))
                found.append(Run(folder, record(method, seed, 0.3 + 0.1 * (method == "full"), loss=loss)))
    return Runs(tuple(found))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was sought")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def sent(model):
    """As JSON, without the ids that are drawn anew each time."""
    return without_ids(json.loads(model.model_dump_json(by_alias=True, exclude_none=True)))


def without_ids(content):
    if isinstance(content, dict):
        return {
            key: without_ids(value) for key, value in content.items() if key not in ("id", "__id__", "ref")
        }
    return [without_ids(item) for item in content] if isinstance(content, list) else content


def lacks(wanted, content, where="") -> list[str]:
    """What of a snapshot is not there; a newer wandb-workspaces may send more."""
    if isinstance(wanted, dict):
        if not isinstance(content, dict):
            return [where]
        return [
            gap for key, value in wanted.items() for gap in lacks(value, content.get(key), f"{where}/{key}")
        ]
    if isinstance(wanted, list):
        if not isinstance(content, list) or len(wanted) != len(content):
            return [where]
        pairs = enumerate(zip(wanted, content, strict=True))
        return [gap for place, (one, other) in pairs for gap in lacks(one, other, f"{where}/{place}")]
    return [] if wanted == content else [f"{where}: {wanted!r}, not {content!r}"]


@pytest.mark.parametrize("make", [workspace, report])
def test_what_would_be_sent_is_what_was_looked_at(make, runs):
    content = sent(make(compare(runs), runs, "birds", "me")._to_model())
    for block in content["spec"].get("blocks", []):
        if block["type"] == "markdown-block":
            del block["content"]  # the tables have tests of their own
    path = SNAPSHOTS / f"wandb_{make.__name__}.json"
    if not path.is_file():  # delete it to take a new one, and look at it
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        pytest.fail(f"{path} is new: look at it, then run this again.")
    assert lacks(json.loads(path.read_text()), content) == []


def test_the_workspace_averages_seeds_of_the_runs_that_were_compared_and_of_no_others(runs):
    section = sent(workspace(compare(runs), runs, "birds", "me")._to_model())["spec"]["section"]
    [shown] = section["runSets"]
    assert [group["name"] for group in shown["grouping"]] == [
        "choices.value.data", "choices.value.loss", "choices.value.ablation",
    ]  # fmt: skip
    [only] = shown["filters"]["filters"]
    assert only["key"] == {"section": "run", "name": "name"}, "W&B's name of a run's id"
    assert set(only["value"]) == set(logged(runs.finished))
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    averaged = [
        panel["config"] for panel in panels if panel["viewType"] in ("Bar Chart", "Run History Line Plot")
    ]
    assert all((one["groupAgg"], one["groupArea"]) == ("mean", "minmax") for one in averaged)
    curves = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {curve["xAxis"] for curve in curves} == {"epoch"}


def test_methods_told_apart_by_a_setting_are_grouped_by_that_setting(record, tmp_path):
    made = [
        Run(tmp_path / str(number), record("full", 0, 0.5, config={"adversary.strength": strength}))
        for number, strength in enumerate((0.1, 0.3))
    ]
    found = Runs(tuple(made))
    comparison = compare(found, "adversary.strength", reference="0.1")
    [shown] = sent(workspace(comparison, found, "p", "e")._to_model())["spec"]["section"]["runSets"]
    assert shown["grouping"][-1] == {"section": "config", "name": "adversary.value.strength"}


def test_the_report_has_the_tables_and_a_command_for_each_run_up_to_a_bound(runs):
    blocks = sent(report(compare(runs), runs, "birds", "me")._to_model())["spec"]["blocks"]
    [tables] = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert "| arcface" in tables or "arcface" in tables
    assert "verdict" in tables
    many = Runs(runs.finished * 20)
    text = json.dumps(sent(report(compare(runs), many, "birds", "me")._to_model()))
    assert text.count("unseen train ") == 40
    assert "and 120 more" in text


def test_what_cannot_be_published_is_said_before_anything_is_sent(runs, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    comparison = compare(runs)
    with pytest.raises(ValueError, match="no W&B API key"):
        publish(comparison, runs, "birds")
    unlogged = Runs(tuple(Run(tmp_path / "nowhere", run.record) for run in runs.finished))
    with pytest.raises(ValueError, match="none of the runs was logged"):
        publish(comparison, unlogged, "birds")


def test_both_are_saved_under_the_accounts_own_name_and_their_addresses_are_said(runs, monkeypatch):
    saved = []

    def save(self):
        saved.append((type(self).__name__, self.entity, self.project))
        return SimpleNamespace(url=f"https://example/{type(self).__name__}")

    monkeypatch.setattr("unseen.tracking.dashboards.wandb.has_key", lambda: True)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="mine"))
    monkeypatch.setattr(Workspace, "save", save)
    monkeypatch.setattr(Report, "save", save)
    said = str(publish(compare(runs), runs, "birds"))
    assert saved == [("Workspace", "mine", "birds"), ("Report", "mine", "birds")]
    assert "https://example/Workspace" in said
    assert "https://example/Report" in said
    assert "7" in said.splitlines()[-1]

    def refuse(self):
        raise wandb.errors.CommError("no such project")

    monkeypatch.setattr(Report, "save", refuse)
    with pytest.raises(ValueError, match=r"to=wandb: W&B refuses 'me/birds': no such project"):
        publish(compare(runs), runs, "birds", "me")


@pytest.mark.slow
def test_the_command_prints_its_tables_first_and_says_in_words_what_is_missing(runs, tmp_path):
    for run in runs.finished:
        run.record.save(run.folder / "record.json")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    result = subprocess.run(
        [sys.executable, "-m", "unseen", "report", f"runs={tmp_path}", "to=wandb", "to.project=birds"],
        env={**environment, "NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert "8 finished runs" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: to=wandb: no W&B API key.")


def test_a_run_that_a_newer_one_replaces_is_in_no_mean_and_a_gap_begins_with_the_least(
    runs, record, tmp_path
):
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "dashboard.json").write_text(json.dumps({"id": "again"}))
    again = Run(folder, record("full", 0, 0.4, loss="triplet", finished="2099-01-01T00:00:00+00:00"))
    twice = Runs((*runs.finished, again))
    for split, ascending in (("unseen", False), ("gap", True)):
        content = workspace(compare(twice, split=split, metrics=["map_at_r"]), twice, "birds", "me")
        filters = str(content.runset_settings.filters)
        assert "'again'" in filters
        assert "'full-triplet-0'" not in filters
        assert [one.ascending for one in content.runset_settings.order] == [ascending]
