"""The bootstrap over classes: against resampling queries one by one, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unseen.evaluation.intervals import class_intervals


def test_it_is_what_putting_the_queries_of_drawn_classes_together_gives() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([3, 5, 8, 13, 21], [2, 9, 4, 1, 6])
    random.shuffle(labels)
    values = random.random(len(labels))
    values[[1, 7]] = np.nan
    drawn = np.random.default_rng(5)
    means = []
    for _ in range(400):
        classes = np.unique(labels)[drawn.integers(5, size=5)]
        means.append(np.nanmean(np.concatenate([values[labels == label] for label in classes])))
    per_query = {"metric": torch.from_numpy(values), "other": torch.from_numpy(1 - values)}
    found = class_intervals(per_query, torch.from_numpy(labels), resamples=400, seed=5)
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["metric"] == pytest.approx((low, high))
    assert found["other"] == pytest.approx((1 - high, 1 - low))


def test_it_covers_the_mean_of_all_classes_nineteen_times_in_twenty() -> None:
    # Classes differ, and are of different sizes; the value of a class does not depend on its size.
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        sizes = random.integers(2, 20, size=60)
        rates = random.beta(4, 2, size=60)
        labels = np.repeat(np.arange(60), sizes)
        values = (random.random(len(labels)) < rates[labels]).astype(np.float64)
        found = class_intervals(
            {"m": torch.from_numpy(values)}, torch.from_numpy(labels), resamples=300, seed=trial
        )
        covered += found["m"][0] <= 4 / 6 <= found["m"][1]
    assert 0.91 <= covered / 400 <= 0.98


def test_classes_of_which_no_query_counts_do_not_spoil_it() -> None:
    values = torch.tensor([torch.nan, torch.nan, 1.0, 0.0, 1.0])
    found = class_intervals({"m": values}, torch.tensor([0, 0, 1, 1, 2]), resamples=200, seed=0)
    assert found["m"] == (0.5, 1.0)


def test_a_metric_that_counts_in_one_class_alone_has_none() -> None:
    values = {"one": torch.tensor([torch.nan, torch.nan, 1.0, 0.0]), "two": torch.ones(4)}
    assert list(class_intervals(values, torch.tensor([0, 0, 1, 1]), resamples=9, seed=0)) == ["two"]


def test_one_class_or_no_resample_gives_none_and_negative_is_refused() -> None:
    values, labels = {"m": torch.ones(4)}, torch.tensor([0, 0, 1, 1])
    assert class_intervals(values, labels, resamples=0, seed=0) == {}
    assert class_intervals(values, torch.zeros(4, dtype=torch.int64), resamples=9, seed=0) == {}
    with pytest.raises(ValueError, match=r"evaluation\.resamples=-1"):
        class_intervals(values, labels, resamples=-1, seed=0)
