"""Same or different, known or unknown: thresholds of similarity, and how often they err."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rates = dict[str, float]
RATES = (0.1, 0.01, 0.001)
"""Of different pairs that are accepted: a threshold is given for each."""
UNKNOWN_RATES = (0.2, 0.1, 0.05, 0.01)
"""Of unknown images that are accepted, likewise: each has many chances to look like an image of a gallery."""
MOST = 3000
"""Images that are compared each with each."""


class Thresholds(NamedTuple):
    """Two of those that `calibrate` found, for one rate of errors.

    Args:
        same: of two images, as `verify` gives it.
        known: of an image and a gallery, as `identify` gives it.
    """

    same: Rates
    known: Rates

    def is_same(self, similarity: float) -> bool:
        """Whether two images count as the same class."""
        return similarity >= self.same["threshold"]

    def is_known(self, similarity: float) -> bool:
        """Whether an image counts as one of a class of the gallery, by its nearest image there."""
        return similarity >= self.known["threshold"]


def chosen(
    calibrated: Mapping[str, Any] | None, false_accepts: float, unknown_accepts: float
) -> Thresholds | None:
    """The lowest thresholds that err no more often than they may.

    Args:
        calibrated: by `calibrate`, or nothing.
        false_accepts: share of different pairs that may be taken for the same class.
        unknown_accepts: share of images of unknown classes that may be taken for known.

    Returns:
        Nothing where nothing was calibrated.

    Raises:
        ValueError: no threshold was calibrated for so low a share.
    """
    if calibrated is None:
        return None
    same = [one for one in calibrated["same"] if one["false_accepts"] <= false_accepts]
    known = [one for one in calibrated["known"] if 1 - one["unknown_rejected"] <= unknown_accepts + 1e-9]
    for found, key, given, rates in (
        (same, "false_accepts", false_accepts, RATES),
        (known, "unknown_accepts", unknown_accepts, UNKNOWN_RATES),
    ):
        if not found:
            raise ValueError(
                f"{key}={given}: thresholds were calibrated for {', '.join(map(str, rates))}. Choose one."
            )
    lowest = operator.itemgetter("threshold")
    return Thresholds(min(same, key=lowest), min(known, key=lowest))


def calibrate(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Thresholds from images of classes that training did not see.

    Args:
        embeddings: `(N, d)`, of length 1; at most `MOST` of them, drawn at random, are used, and of those
            the classes of which there are two.
        labels: `(N,)`.

    Returns:
        As plain data: `same`, of two images (see `verify`); `known`, of an image and a gallery (see
        `identify`); `classes` and `images` that they come from.

    Raises:
        ValueError: there are fewer than two classes with at least two images.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:MOST])
    embeddings, labels = embeddings[rows], labels[rows]
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    several = counts[member] > 1
    embeddings, labels = embeddings[several], labels[several]
    names = np.unique(labels)
    if len(names) < 2:
        raise ValueError("Thresholds need at least two classes with two images each.")
    similarities = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    above = np.triu_indices(len(labels), 1)
    is_same = labels[above[0]] == labels[above[1]]
    values = similarities[above]
    return {
        "same": verify(values[is_same], values[~is_same], RATES),
        "known": identify(similarities, labels, UNKNOWN_RATES),
        "classes": len(names),
        "images": len(labels),
    }


def verify(same: NDArray[np.float64], different: NDArray[np.float64], rates: Sequence[float]) -> list[Rates]:
    """Thresholds above which two images count as the same class.

    Args:
        same: similarities of pairs of one class.
        different: of pairs of two.
        rates: shares of `different` that may be taken for the same.

    Returns:
        For each rate `threshold`, the lowest that keeps it; `false_accepts`, the share of `different` at or
        above it; `false_rejects`, the share of `same` below it. The last entry is where both are equal.
    """
    ordered_same, ordered = np.sort(same), np.sort(different)
    candidates = np.unique(np.concatenate([ordered_same, ordered]))
    thresholds = [_lowest(ordered, candidates, rate) for rate in rates]
    accepts = 1 - np.searchsorted(ordered, candidates) / len(ordered)
    rejects = np.searchsorted(ordered_same, candidates) / len(ordered_same)
    thresholds.append(float(candidates[np.argmin(np.abs(accepts - rejects))]))
    return [
        {
            "threshold": threshold,
            "false_accepts": float((different >= threshold).mean()),
            "false_rejects": float((same < threshold).mean()),
        }
        for threshold in thresholds
    ]


def identify(
    similarities: NDArray[np.float64], labels: NDArray[np.int64], rates: Sequence[float]
) -> list[Rates]:
    """Thresholds below which an image is of no class of a gallery, by its nearest image there.

    Every second class is unknown: none of its images is in the gallery. Of the others every second image is.

    Args:
        similarities: `(N, N)`.
        labels: `(N,)`.
        rates: shares of unknown images that may be taken for known.

    Returns:
        For each rate `threshold`; `unknown_rejected`, the share of unknown images below it; and
        `known_found`, the share of known images at or above it whose nearest image is of their class.
    """
    place = np.unique(labels, return_inverse=True)[1]
    # Of its own class, how many images come before an image.
    rank = np.array([(place[:row] == label).sum() for row, label in enumerate(place)])
    unknown = place % 2 == 1
    gallery = np.flatnonzero(~unknown & (rank % 2 == 0))
    known = np.flatnonzero(~unknown & (rank % 2 == 1))
    nearest = similarities[:, gallery].argmax(axis=1)
    top = similarities[np.arange(len(labels)), gallery[nearest]]
    is_right = labels[gallery[nearest]] == labels
    found = []
    for rate in rates:
        threshold = _lowest(np.sort(top[unknown]), np.unique(top), rate)
        found.append(
            {
                "threshold": threshold,
                "unknown_rejected": float((top[unknown] < threshold).mean()),
                "known_found": float(((top[known] >= threshold) & is_right[known]).mean()),
            }
        )
    return found


def _lowest(ordered: NDArray[np.float64], values: NDArray[np.float64], rate: float) -> float:
    """The lowest threshold that at most a share of ascending values reaches.

    It lies halfway to the next higher of all `values`, so that rounding does not decide.
    """
    allowed = int(rate * len(ordered))
    if allowed >= len(ordered):
        return float(ordered[0])
    below = float(ordered[len(ordered) - 1 - allowed])
    higher = values[values > below]
    return (below + float(higher[0])) / 2 if len(higher) else float(np.nextafter(below, np.inf))
