"""Fits the readout of an embedder on training images, without their labels."""

from __future__ import annotations

import numpy as np

from unseen.data.module import DataModule
from unseen.evaluation.embed import embed
from unseen.nn.embedder import Embedder

AT_LEAST = 1000
"""Training images that principal directions are taken from, or twice as many as directions, if that is
more."""


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
    sample = np.sort(np.random.default_rng(0).permutation(rows)[:count])
    embedder.readout.fit(embed(embedder, data.loader(sample), features=True).features)
