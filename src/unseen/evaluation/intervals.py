"""How far the metrics of a run would move with other test classes: a bootstrap over classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

COVERAGE = 0.95


def class_intervals(
    per_query: Mapping[str, Tensor], labels: Tensor, *, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval (95 %) of each metric's mean over queries, resampling test classes.

    A resample draws as many classes as there are, with replacement; with `S_c` and `n_c` the sum and the
    number of the queries of class `c` that count, and `w_c` how often it was drawn, the metric is
    `Σ w_c S_c / Σ w_c n_c` (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; classes
    are the units that are sampled, as queries of one class are alike).

    Covered: which classes happened to be tested. Not covered: the seed of training, other training classes
    or images; nor the gallery, which stays whole, so that a class drawn twice is no harder to retrieve. With
    fewer than some 20 classes the interval is too narrow.

    Args:
        per_query: metric → `(N,)`, NaN where a query does not count.
        labels: `(N,)` of the queries.
        resamples: how many; 0 gives no interval.
        seed: of the resamples.

    Returns:
        Metric → (low, high); none of a metric that counts in fewer than two classes, which say nothing about
        others.

    Raises:
        ValueError: `resamples` is negative.
    """
    if resamples < 0:
        raise ValueError(f"evaluation.resamples={resamples}: wanted at least 0; 0 gives no interval.")
    classes, member = np.unique(labels.cpu().numpy(), return_inverse=True)
    if resamples == 0 or len(classes) < 2 or not per_query:
        return {}
    values = np.stack([value.double().cpu().numpy() for value in per_query.values()], axis=1)
    counts = ~np.isnan(values)
    sums, sizes = (np.zeros((len(classes), values.shape[1])) for _ in range(2))
    np.add.at(sums, member, np.where(counts, values, 0))
    np.add.at(sizes, member, counts)
    random = np.random.default_rng(seed % 2**64)
    means = np.empty((resamples, values.shape[1]))
    for resample in range(resamples):
        times = np.bincount(random.integers(len(classes), size=len(classes)), minlength=len(classes))
        with np.errstate(invalid="ignore"):  # only classes whose queries do not count: no mean
            means[resample] = (times @ sums) / (times @ sizes)
    tail = (1 - COVERAGE) / 2
    low, high = np.nanquantile(means, (tail, 1 - tail), axis=0)
    tell = (sizes > 0).sum(axis=0) > 1
    return {
        name: (float(low[place]), float(high[place])) for place, name in enumerate(per_query) if tell[place]
    }
