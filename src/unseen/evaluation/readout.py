"""Fits the readout of an embedder on training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen.data.module import DataModule
from unseen.evaluation.embed import embed
from unseen.nn.embedder import Embedder

AT_LEAST = 1000
"""Training images that the readout is fitted to, or twice as many as dimensions, if that is more."""
OF_A_CLASS = 4
"""Images of a class, where it has as many: fewer say little of how images of one class differ."""


def fit_readout(embedder: Embedder, data: DataModule) -> None:
    """Fit on a sample of the training images, prepared as for evaluation; always the same sample.

    A pure function of the weights, so that a run that resumes deploys what an uninterrupted one does. An
    embedder without a readout is left alone.

    Args:
        embedder: on the device to use; weights and modes stay as they are.
        data: gives the training images.
    """
    if embedder.readout is None:
        return
    rows = data.split.train
    count = max(AT_LEAST, 2 * len(embedder.readout.directions))
    sample = rows[balanced_sample(np.asarray(data.manifest.labels)[rows], count)]
    found = embed(embedder, data.loader(sample), features=lambda embedded: embedded.read)
    embedder.readout.fit(found.features, found.labels)


def balanced_sample(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of a sample, ascending: as many of each class as of any other, and several of each.

    Args:
        labels: `(N,)`.
        count: of the sample; all where there are fewer. Where it is below `OF_A_CLASS` for each class (all
            of a smaller one), some classes are drawn.
    """
    generator = np.random.default_rng(0)
    every, each = np.unique(labels, return_counts=True)
    drawn = generator.permutation(len(every))
    enough = np.searchsorted(np.cumsum(np.minimum(each[drawn], OF_A_CLASS)), count) + 1
    names = every[drawn[:enough]]
    shuffled = generator.permutation(np.flatnonzero(np.isin(labels, names)))
    # In turn one image of each class.
    turn = np.zeros(len(shuffled), dtype=np.int64)
    by_class = np.argsort(labels[shuffled], kind="stable")
    _, starts, sizes = np.unique(labels[shuffled][by_class], return_index=True, return_counts=True)
    turn[by_class] = np.arange(len(shuffled)) - np.repeat(starts, sizes)
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:count]])
