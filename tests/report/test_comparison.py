"""What is paired with what, what comes out of it, and what is refused."""

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from unseen.report.comparison import compare
from unseen.report.runs import Runs
from unseen.report.statistics import Interval, Verdict

SEEDS = range(4)
LOSSES = ("contrastive", "margin", "triplet")


def grid_values(generator):
    methods = ("baseline", "cann", "full")
    return {
        (method, loss, seed): 0.3 + 0.02 * number + float(generator.normal(0, 0.02))
        for number, method in enumerate(methods)
        for loss in LOSSES
        for seed in SEEDS
    }


def by(found, **wanted):
    [one] = [item for item in found if all(getattr(item, key) == value for key, value in wanted.items())]
    return one


def test_a_cell_against_scipy(grid_of):
    values = grid_values(np.random.default_rng(0))
    comparison = compare(grid_of(values), margin=0.01)
    assert comparison.methods == ("baseline", "cann", "full")
    assert [cell.name for cell in comparison.cells] == [f"cub · {loss}" for loss in LOSSES]
    for loss in LOSSES:
        full, baseline = (
            np.array([values[name, loss, seed] for seed in SEEDS]) for name in ("full", "baseline")
        )
        result = by(comparison.results, cell=f"cub · {loss}", method="full", metric="map_at_r")
        assert [point.value for point in result.points] == full.tolist()
        assert result.mean == pytest.approx(full.mean())
        assert (result.gap, result.untrained) == pytest.approx((0.1, 0.2))
        found = by(comparison.differences, cell=f"cub · {loss}", method="full", metric="map_at_r")
        expected = stats.ttest_rel(full, baseline).confidence_interval(0.95)
        assert found.values == pytest.approx(full - baseline)
        assert found.interval == pytest.approx((expected.low, expected.high))
        # Recall@1 is twice MAP@R in these records.
        recall = by(comparison.differences, cell=f"cub · {loss}", method="full", metric="recall_at_1")
        assert recall.interval == pytest.approx((2 * expected.low, 2 * expected.high))
    assert not comparison.missing
    assert not comparison.unequal
    assert not comparison.duplicates


def test_over_cells_seeds_do_not_count(grid_of):
    values = grid_values(np.random.default_rng(1))
    found = by(compare(grid_of(values)).overall, method="full", metric="map_at_r")
    means = [
        np.mean([values["full", loss, seed] - values["baseline", loss, seed] for seed in SEEDS])
        for loss in LOSSES
    ]
    assert found.cells == len(LOSSES)
    assert found.mean == pytest.approx(np.mean(means))
    assert found.smallest_p == 0.25
    assert found.p_value >= 0.25
    assert found.verdict is Verdict.CANNOT_TELL
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    pairs = [
        np.mean([[values["full", loss, a] > values["baseline", loss, b] for a in SEEDS] for b in SEEDS])
        for loss in LOSSES
    ]
    assert found.probability == pytest.approx(np.mean(pairs))


def test_enough_cells_can_tell(grid_of):
    generator = np.random.default_rng(2)
    values = {
        (method, f"loss {loss}", seed): 0.3 + 0.03 * (method == "full") + float(generator.normal(0, 0.002))
        for method in ("baseline", "full")
        for loss in range(8)
        for seed in range(2)
    }
    found = by(compare(grid_of(values), margin=0.01).overall, method="full", metric="map_at_r")
    assert found.verdict is Verdict.BETTER
    assert found.improved == 1
    assert found.probability == 1
    assert found.p_value == found.smallest_p == 2 / 2**8
    assert found.p_holm == 2 * found.p_value, "two metrics are two comparisons"


@pytest.mark.parametrize("seed", range(10))
def test_differences_change_sign_with_the_reference(seed, grid_of):
    values = grid_values(np.random.default_rng(seed))
    there = compare(grid_of(values), margin=0.01)
    back = compare(grid_of(values), reference="full", margin=0.01)
    for one in there.differences:
        if one.method != "full":
            continue
        other = by(back.differences, cell=one.cell, method="baseline", metric=one.metric)
        assert one.values == pytest.approx([-value for value in other.values])
        assert one.interval == pytest.approx(Interval(-other.interval.high, -other.interval.low))
        opposite = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
        assert one.verdict == opposite.get(other.verdict, other.verdict)
    for metric in there.metrics:
        one = by(there.overall, method="full", metric=metric)
        other = by(back.overall, method="baseline", metric=metric)
        assert one.p_value == other.p_value
        assert one.probability == pytest.approx(1 - other.probability)
        assert one.mean == pytest.approx(-other.mean)
        assert one.interquartile_mean == pytest.approx(-other.interquartile_mean)


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_runs_changes_nothing(seed, grid_of):
    runs = grid_of(grid_values(np.random.default_rng(seed)))
    shuffled = list(runs.finished)
    random.Random(seed).shuffle(shuffled)
    assert compare(Runs(tuple(shuffled))) == compare(runs)


def test_one_seed_cannot_tell(grid_of):
    comparison = compare(grid_of({("baseline", "triplet", 0): 0.1, ("full", "triplet", 0): 0.9}))
    for one in comparison.differences:
        assert one.interval is None
        assert one.verdict is Verdict.CANNOT_TELL
    assert {one.verdict for one in comparison.overall} == {Verdict.CANNOT_TELL}
    assert {one.smallest_p for one in comparison.overall} == {1.0}
    assert by(comparison.results, method="full", metric="map_at_r").interval is None


def test_of_a_gap_lower_is_better(record, runs_of):
    records = [
        record(method, seed, metrics={"gap": {"map_at_r": gap + 0.001 * seed * (method == "full")}})
        for method, gap in (("baseline", 0.3), ("full", 0.1))
        for seed in SEEDS
    ]
    comparison = compare(runs_of(*records), split="gap", metrics=["map_at_r"])
    [difference] = comparison.differences
    assert difference.mean < 0
    assert difference.verdict is Verdict.BETTER
    assert difference.class_interval is None
    [overall] = comparison.overall
    assert overall.improved == overall.probability == 1


def test_unequal_splits_are_not_paired_and_both_are_named(record, runs_of):
    runs = runs_of(
        *(record("baseline", seed, split="a" * 64) for seed in range(2)),
        *(record("full", seed, split="f" * 64) for seed in range(2)),
    )
    comparison = compare(runs)
    assert [cell.name for cell in comparison.cells] == [
        "cub · triplet · split aaaaaaaa",
        "cub · triplet · split ffffffff",
    ]
    assert not comparison.differences
    assert not comparison.overall
    [unequal] = comparison.unequal
    assert unequal.factors == {"data": "cub", "loss": "triplet"}
    assert (unequal.splits, unequal.reference_splits) == (("f" * 64,), ("a" * 64,))
    assert not comparison.missing, "what is refused is not said twice"


def test_values_that_hold_the_dot_between_values_are_cells_of_their_own(record, runs_of):
    names = [("a · b", "c"), ("a", "b · c"), ("a", "d")]
    runs = runs_of(
        *(record(method, data=data, loss=loss) for method in ("baseline", "full") for data, loss in names)
    )
    comparison = compare(runs, metrics=["map_at_r"])
    assert [one.name for one in comparison.cells] == ['["a · b", "c"]', '["a", "b · c"]', "a · d"]
    assert len(comparison.differences) == 3


def test_folds_are_cells_and_nothing_is_refused(record, runs_of):
    splits = ["1" * 64, "2" * 64]
    runs = runs_of(*(record(method, split=split) for method in ("baseline", "full") for split in splits))
    comparison = compare(runs, metrics=["map_at_r"])
    assert len(comparison.differences) == 2
    assert not comparison.unequal


def test_what_is_missing_and_why(record, runs_of):
    runs = runs_of(
        record("baseline", 0),
        record("baseline", 1),
        record("baseline", 2),
        record("full", 0),
        record("full", 1, status="failed", error="RuntimeError: out of memory", metrics={}),
        record("baseline", 3, metrics={"unseen": {"recall_at_1": 0.5}}),
        record("full", 3),
        record("full", 0, loss="margin", status="interrupted", error=None, metrics={}),
    )
    missing = {(one.cell, one.method, one.seed): one for one in compare(runs).missing}
    assert missing.keys() == {
        ("cub · triplet", "full", 1),
        ("cub · triplet", "full", 2),
        ("cub · triplet", "baseline", 3),
        ("cub · margin", "full", 0),
        ("cub · margin", "baseline", 0),
    }
    failed = missing["cub · triplet", "full", 1]
    assert failed.reason == "failed: RuntimeError: out of memory"
    assert failed.folder == Path("runs/004")
    assert missing["cub · triplet", "full", 2].reason == "no run"
    assert missing["cub · triplet", "baseline", 3].reason == "no value of map_at_r on unseen"
    assert missing["cub · margin", "full", 0].reason == "interrupted: no error was kept"
    difference = by(compare(runs).differences, method="full", metric="map_at_r")
    assert difference.seeds == (0,), "seed 3 of the baseline has no MAP@R"


def test_of_runs_of_the_same_settings_the_newest_counts(record, runs_of):
    runs = runs_of(
        record("full", 0, 0.9, finished="2026-01-03T00:00:00+00:00"),
        record("full", 0, 0.8, finished="2026-01-02T00:00:00+00:00"),
        record("baseline", 0, 0.5),
    )
    comparison = compare(runs, metrics=["map_at_r"])
    [difference] = comparison.differences
    assert difference.mean == pytest.approx(0.4)
    [duplicate] = comparison.duplicates
    assert (duplicate.kept, duplicate.dropped) == (Path("runs/000"), (Path("runs/001"),))


def test_runs_of_one_place_with_other_settings_are_refused(record, runs_of):
    runs = runs_of(
        record("baseline"),
        record("full"),
        record("full", config={"trainer.max_epochs": 20, "data.root": "/elsewhere"}),
    )
    with pytest.raises(ValueError, match=r"differ in trainer\.max_epochs \(4, 20\)") as refused:
        compare(runs)
    assert "data.root" not in str(refused.value)
    for word in ("'full'", "cub · triplet", "runs/001", "runs/002", "cells=[data,loss,trainer.max_epochs]"):
        assert word in str(refused.value)
    told = compare(runs, cells=["data", "loss", "trainer.max_epochs"])
    assert [cell.name for cell in told.cells] == ["cub · triplet · 20", "cub · triplet · 4"]


def test_settings_beside_the_method_are_told(record, runs_of):
    runs = runs_of(
        *(record("baseline", seed) for seed in range(3)),
        *(record("full", seed, config={"trainer.max_epochs": 20} if seed else None) for seed in range(3)),
    )
    settings = compare(runs).settings
    between = {one.key: one for one in settings if not one.is_within}
    assert between.keys() == {"fusion", "adversary", "trainer.max_epochs"}
    assert between["fusion"].is_part
    assert between["adversary"].is_part
    assert (between["adversary"].reference, between["adversary"].value) == ("none", "grl")
    epochs = between["trainer.max_epochs"]
    assert (epochs.reference, epochs.value, epochs.pairs, epochs.of) == ("4", "20", 2, 3)
    assert not epochs.is_part
    [within] = [one for one in settings if one.is_within]
    assert (within.method, within.key) == ("full", "trainer.max_epochs")
    assert (within.reference, within.value, within.pairs, within.of) == ("4", "20", 2, 2)


def test_measured_otherwise_is_told(record, runs_of):
    runs = runs_of(
        record("baseline"),
        record("full", config={"metrics": {"similarity": "euclidean"}}, weights="c" * 64),
    )
    keys = {one.key: one.value for one in compare(runs).settings if not one.is_part}
    assert keys == {"metrics.similarity": "euclidean", "initial weights": "cccccccc"}


def test_a_key_that_an_older_version_had_not_is_absent_there(record, runs_of):
    new = {"averaging": {"_target_": "unseen.training.averaging.none"}, "sampler": None}
    runs = runs_of(record("baseline"), record("full", config=new))
    found = {one.key: (one.reference, one.value) for one in compare(runs).settings}
    assert found["averaging"] == ("absent", "none")
    assert found["sampler"] == ("absent", "none")
    assert found["adversary"] == ("none", "grl")


def test_another_version_of_the_package_is_told(record, runs_of):
    runs = runs_of(record("baseline"), record("full"))
    old = dataclasses.replace(runs.finished[0].record.environment, versions={"unseen-dml": "0.1.0"})
    runs = runs_of(record("baseline", environment=old), record("full"))
    [found] = [one for one in compare(runs).settings if not one.is_part]
    assert (found.key, found.reference, found.value) == ("version of unseen", "0.1.0", "0.2.0")


def test_a_key_of_the_config_tells_methods_apart_too(record, runs_of):
    runs = runs_of(
        *(
            record("cann", seed, config={"adversary.strength": strength})
            for strength in (0.03, 0.1, 1.0)
            for seed in (0, 1)
        )
    )
    comparison = compare(runs, "adversary.strength", reference="0.1")
    assert comparison.methods == ("0.1", "0.03", "1.0")
    assert not comparison.settings


def test_losses_compare_within_data(record, runs_of):
    runs = runs_of(*(record("full", seed, loss=loss) for loss in LOSSES for seed in range(2)))
    comparison = compare(runs, "loss", reference="triplet")
    assert [cell.name for cell in comparison.cells] == ["cub"]
    assert comparison.methods == ("triplet", "contrastive", "margin")


def test_classes_are_paired_and_count_once(record, runs_of):
    generator = np.random.default_rng(3)
    values = {
        (method, seed): {f"class {name}": float(generator.uniform()) for name in range(20)}
        for method in ("baseline", "full")
        for seed in range(2)
    }
    values["full", 0]["class 3"] = math.nan
    runs = runs_of(
        *(record(method, seed, per_class={"map_at_r": found}) for (method, seed), found in values.items())
    )
    difference = by(compare(runs).differences, metric="map_at_r")
    expected = [
        np.mean([values["full", seed][name] - values["baseline", seed][name] for seed in range(2)])
        for name in values["full", 0]
        if name != "class 3"
    ]
    assert difference.classes == 19
    assert difference.class_mean == pytest.approx(np.mean(expected))
    interval = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    assert difference.class_interval == pytest.approx((interval.low, interval.high))
    recall = by(compare(runs).differences, metric="recall_at_1")
    assert recall.classes == 0
    assert recall.class_interval is None
    assert math.isnan(recall.class_mean)


def test_costs(record, runs_of):
    runs = runs_of(
        record("baseline", 0, images_per_second=math.nan),
        record("baseline", 1),
        record("full", 0),
        record("full", 1),
        record("full", 4),
    )
    baseline, full = compare(runs).costs
    assert baseline.images_per_second == 101
    assert (full.images_per_second, full.seconds) == (101, 21)
    assert (full.host_bytes, full.accelerator_bytes, full.parameters) == (2**30, None, 1000)
    assert full.machines == ("a processor, 2 cores",)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"compare": "ablatoin"}, ["ablatoin", "The runs differ in", "fusion (attention, last)"]),
        ({"compare": "loss"}, ["compare=loss", "'triplet'", "ablation (baseline, full)"]),
        ({"compare": "seed"}, ["averaged"]),
        ({"reference": "gdfl"}, ["reference=gdfl", "baseline, full"]),
        ({"metrics": ["map"]}, ["'map'", "map_at_r, recall_at_1"]),
        ({"metrics": []}, ["one or more"]),
        ({"metrics": ["map_at_r", "map_at_r"]}, ["each once"]),
        ({"split": "test"}, ["split=test", "gap, unseen, untrained"]),
        ({"margin": 0.5}, ["margin=0.5", "half a point"]),
        ({"margin": math.nan}, ["margin=nan"]),
        ({"level": 95}, ["level=95"]),
        ({"cells": ["dataset"]}, ["cells=dataset"]),
    ],
)
def test_what_cannot_be_asked_is_said_in_words(asked, words, record, runs_of):
    runs = runs_of(*(record(method, seed) for method in ("baseline", "full") for seed in range(2)))
    with pytest.raises(ValueError) as refused:
        compare(runs, **asked)
    for word in words:
        assert word in str(refused.value)


def test_nothing_finished(record, runs_of):
    with pytest.raises(ValueError, match="no record of a run"):
        compare(runs_of())
    with pytest.raises(ValueError, match=r"1 left no result.*failed: it broke"):
        compare(runs_of(record(status="failed", error="it broke", metrics={})))


def test_methods_without_an_effect_are_seldom_called_better_or_worse(grid_of):
    """From records to verdicts over cells: at most one comparison in twenty is wrong anywhere."""
    generator = np.random.default_rng(11)
    simulations = 100
    wrong = 0
    for _ in range(simulations):
        cells = generator.normal(0.3, 0.05, 9)
        effects = generator.normal(0, 0.02, (3, 9))  # a method helps some cells and harms as many
        values = {
            (method, f"loss {cell}", seed): float(
                cells[cell] + effects[number, cell] + generator.normal(0, 0.004)
            )
            for number, method in enumerate(("baseline", "cann", "full"))
            for cell in range(9)
            for seed in range(2)
        }
        overall = compare(grid_of(values), metrics=["map_at_r"], margin=0).overall
        wrong += any(one.verdict in (Verdict.BETTER, Verdict.WORSE) for one in overall)
    assert wrong / simulations <= 0.05 + 3 * (0.05 * 0.95 / simulations) ** 0.5


def test_a_run_that_was_refused_before_its_split_was_known_is_missing_where_it_would_have_been(
    record, runs_of
):
    finished = [record(method, seed) for method in ("baseline", "gdfl") for seed in range(3)]
    refused = record("gdfl", 2, split="", metrics={}, status="failed", error="ValueError: no")
    found = compare(runs_of(*finished[:-1], refused))
    assert [(one.cell, one.method, one.seed) for one in found.missing] == [("cub · triplet", "gdfl", 2)]
