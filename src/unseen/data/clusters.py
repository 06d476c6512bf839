"""Which classes lie close together: k-means of a few points, the same wherever it runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 25
"""At most: what batches are drawn from need not have settled."""


def clusters(
    points: NDArray[np.floating], count: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lloyd's k-means from the start of Arthur & Vassilvitskii (2007, "k-means++").

    Args:
        points: `(N, d)`.
        count: k, at most N.
        generator: of the start.

    Returns:
        The cluster of each point, `(N,)` in 0..k-1, and the means, `(k, d)`. Where points coincide a cluster
        may have none.
    """
    values = points.astype(np.float64)
    means = _start(values, count, generator)
    chosen = np.full(len(values), -1)
    for _ in range(ROUNDS):
        before, chosen = chosen, squared_distances(values, means).argmin(axis=1)
        if np.array_equal(before, chosen):
            break
        order = np.argsort(chosen, kind="stable")
        taken, starts, sizes = np.unique(chosen[order], return_index=True, return_counts=True)
        means[taken] = np.add.reduceat(values[order], starts) / sizes[:, None]
    return chosen, means


def _start(points: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Points far from each other, `(k, d)`: each is drawn by its squared distance from those before it."""
    rows = [int(generator.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(rows) < count:
        nearest = np.minimum(nearest, squared_distances(points, points[rows[-1:]])[:, 0])
        total = nearest.sum()
        # Where no other point is left, any.
        rows.append(int(generator.choice(len(points), p=nearest / total if total > 0 else None)))
    return points[rows]


def squared_distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(N, d)` and `(M, d)` → `(N, M)`."""
    lengths = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)
    found: NDArray[np.float64] = np.maximum(lengths - 2 * one @ other.T, 0)
    return found
