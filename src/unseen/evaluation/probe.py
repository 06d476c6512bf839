"""How much class a linear classifier finds in features."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeClassifier
from torch import Tensor


def probe_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy, in [0, 1], of a ridge classifier: learned from every other image, tested on the rest.

    Args:
        features: `(N, D)`; each feature is centred and scaled by the training half.
        labels: `(N,)` integers. A class of a single image is left out.

    Returns:
        The accuracy; NaN when fewer than two classes have two images.
    """
    values, classes = features.numpy().astype(np.float32), labels.numpy()
    place = _place_in_class(classes)
    tested = place % 2 == 1
    trained = (place % 2 == 0) & np.isin(classes, classes[tested])
    if len(np.unique(classes[trained])) < 2:
        return float("nan")
    mean, scale = values[trained].mean(0), values[trained].std(0)
    values = (values - mean) / np.where(scale > 0, scale, 1)
    # As strong as there are features: the penalty keeps up with their number.
    classifier = RidgeClassifier(alpha=float(values.shape[1]))
    classifier.fit(values[trained], classes[trained])
    return float(classifier.score(values[tested], classes[tested]))


def _place_in_class(classes: np.ndarray) -> np.ndarray:
    """0, 1, 2, … for the first, second, third … image of each class."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    place = np.empty(len(classes), dtype=np.int64)
    place[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return place
