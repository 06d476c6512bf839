"""How a run is named, grouped and found again."""

import json
import logging

import pytest

from unseen.tracking.dashboards.card import RunCard

CHOICES = {"data": "glyphs", "loss": "multi_similarity", "ablation": "full", "backbone": "resnet10"}


def card(folder="run", overrides=(), config=None, resume_from=None, key="0123456789abcdef", **choices):
    return RunCard({**CHOICES, **choices}, overrides, {"seed": 0, **(config or {})}, key, folder, resume_from)


@pytest.mark.parametrize(
    ("typed", "varied"),
    [
        ([], ""),
        (["data=glyphs", "loss=multi_similarity", "ablation=full", "seed=0"], ""),
        (["loss.function.alpha=3"], " · loss.function.alpha=3"),
        (["backbone=vit", "+trainer.max_steps=9"], " · backbone=vit · trainer.max_steps=9"),
        (["loss.function.alpha=3", "loss.function.alpha=4"], " · loss.function.alpha=4"),
        (["data.root=/there", "logger=[wandb,mlflow]", "~check.allow"], ""),
        (["hydra.run.dir=x", "hydra/launcher=joblib"], ""),
    ],
)
def test_a_name_says_what_was_chosen_and_typed_and_not_where_or_when(typed, varied):
    assert card(overrides=typed).name == f"glyphs · multi_similarity · full{varied} · s0"


def test_what_has_no_choice_is_not_named():
    assert card(ablation="None").name == "glyphs · multi_similarity · s0"


def test_a_long_name_still_ends_with_its_seed_and_fits():
    typed = [f"optimizer.learning_rates.part_{number}=1e-{number}" for number in range(9)]
    long = card(overrides=typed)
    assert len(long.name) <= 128
    assert long.name.endswith("… · s0")
    assert len(long.group) <= 128


def test_a_group_leaves_out_the_seed_and_where_the_run_goes_and_nothing_else():
    one = card(config={"loss": {"alpha": 2}, "run_folder": "a"}, overrides=["seed=0"])
    assert one.group.startswith("glyphs · multi_similarity · full · ")
    same = card(config={"loss": {"alpha": 2}, "run_folder": "b", "seed": 7}, overrides=["seed=7"])
    assert same.group == one.group
    assert same.name != one.name
    other = card(config={"loss": {"alpha": 3}, "run_folder": "a"})
    assert other.group != one.group


def test_two_runs_of_one_command_are_two_and_a_finished_one_is_never_written_over(tmp_path):
    first, second = card(tmp_path / "a").identify(), card(tmp_path / "b").identify()
    assert first.id.startswith("0123456789abcdef-")
    assert first.id != second.id
    assert not first.continues
    (tmp_path / "a" / "record.json").write_text('{"status": "success"}')
    assert card(tmp_path / "a").identify().id != first.id


@pytest.mark.parametrize("record", [None, '{"status": "failed"}', '{"status": "interrupted"}', "{"])
def test_a_repeated_attempt_takes_the_place_of_the_one_that_failed(tmp_path, record):
    first = card(tmp_path).identify()
    if record is not None:
        (tmp_path / "record.json").write_text(record)
    assert card(tmp_path).identify() == (first.id, False)
    assert card(tmp_path, key="f" * 16).identify().id.startswith("ffffffffffffffff-"), "another job"


def test_a_run_that_resumes_goes_on_in_the_run_it_resumes_through_any_number_of_folders(tmp_path):
    first = card(tmp_path / "a").identify()
    (tmp_path / "a" / "record.json").write_text('{"status": "success"}')
    second = card(tmp_path / "b", resume_from=tmp_path / "a" / "checkpoints" / "last.ckpt", key="more epochs")
    assert second.identify() == (first.id, True)
    third = card(tmp_path / "c", resume_from=tmp_path / "b" / "checkpoints" / "000.ckpt")
    assert third.identify() == (first.id, True)
    in_place = card(tmp_path / "c", resume_from=tmp_path / "c" / "checkpoints" / "last.ckpt")
    assert in_place.identify() == (first.id, True)


def test_what_no_dashboard_saw_begins_there_when_it_resumes(tmp_path):
    assert (
        not card(tmp_path / "b", resume_from=tmp_path / "a" / "checkpoints" / "last.ckpt")
        .identify()
        .continues
    )


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"name": 1})])
def test_an_unreadable_identity_makes_another_run_and_says_so(tmp_path, content, caplog):
    (tmp_path / "dashboard.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert not card(tmp_path).identify().continues
    assert "dashboard.json" in caplog.text
