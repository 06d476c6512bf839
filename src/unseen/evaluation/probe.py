"""How much class a linear classifier finds in fused features; on a sample, so that memory is bounded."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

from unseen.data.module import DataModule
from unseen.data.split import Rows
from unseen.evaluation.embed import embed, fused_features
from unseen.evaluation.galleries import ascending, matched_galleries, shuffled_classes


def measure_probe(
    embedder: nn.Module, data: DataModule, *, classes: int, images: int, seed: int
) -> dict[str, float]:
    """Accuracy of linear probes of the fused features, on samples of the splits that `measure` knows.

    Embeds at most `3 · classes · images` images anew, a third at a time, of which the probe holds about three
    copies in float32: 100 classes × 20 images × 2,048 features take some 50 MB, whatever the data set.

    Args:
        embedder: trained, on the device to use.
        data: gives the split and the images.
        classes: at most so many are probed; 0 probes nothing.
        images: at most so many of each class.
        seed: of the samples; the protocol's, so that runs are probed on the same images.

    Returns:
        Split → accuracy in [0, 1] (see `probe_accuracy`): `unseen`, and where images of seen classes are held
        out and can be matched, `seen`, `unseen_matched` and `gap`.

    Raises:
        ValueError: `classes` or `images` is out of range.
    """
    check_probe_size(classes, images)
    if classes == 0:
        return {}
    labels, held_out = data.manifest.labels, data.split.held_out
    test = np.union1d(data.split.query, data.split.gallery)
    sizes = {"classes": classes, "images": images, "seed": seed}
    accuracies = {"unseen": probe_rows(embedder, data, test, **sizes)}
    if len(held_out) == 0:
        return accuracies
    seen, unseen = matched_galleries(
        labels[held_out], labels[test], seed=seed, most_classes=classes, most_images=images
    )
    if len(seen) == 0:
        return accuracies
    accuracies["seen"] = probe_rows(embedder, data, held_out[seen], **sizes)
    accuracies["unseen_matched"] = probe_rows(embedder, data, test[unseen], **sizes)
    accuracies["gap"] = accuracies["seen"] - accuracies["unseen_matched"]
    return accuracies


def probe_rows(
    embedder: nn.Module, data: DataModule, rows: Rows, *, classes: int, images: int, seed: int
) -> float:
    """`probe_accuracy` on a sample of some rows of the manifest.

    Args:
        embedder: on the device to use.
        data: gives labels and images.
        rows: at least one.
        classes: at most so many, of those with two images, are drawn.
        images: at most so many of each.
        seed: of the sample.

    Returns:
        The accuracy; NaN when fewer than two classes have two images.
    """
    members = shuffled_classes(data.manifest.labels[rows], seed)
    drawn = [places[:images] for places in members if len(places) > 1][:classes]
    if len(drawn) < 2:
        return float("nan")
    probed = embed(embedder, data.loader(rows[ascending(drawn)]), features=fused_features)
    return probe_accuracy(probed.features, probed.labels)


def check_probe_size(classes: int, images: int) -> None:
    """Refuse sizes that no probe can have.

    Raises:
        ValueError: `classes` is 1 or negative, or `images` is below 2.
    """
    if classes < 0 or classes == 1:
        raise ValueError(f"evaluation.probe_classes={classes}: wanted at least 2, or 0 for no probe.")
    if images < 2:
        raise ValueError(
            f"evaluation.probe_images={images}: wanted at least 2, one to learn from and one to test on."
        )


def probe_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy, in [0, 1], of a ridge classifier: learned from every other image, tested on the rest.

    Args:
        features: `(N, D)`; each feature is centred and scaled by the training half.
        labels: `(N,)` integers. A class of a single image is left out.

    Returns:
        The accuracy; NaN when fewer than two classes have two images, and when a feature is not finite, as
        after training that diverged.
    """
    values, classes = np.array(features.numpy(), dtype=np.float32), labels.numpy()
    place = _place_in_class(classes)
    tested = place % 2 == 1
    trained = (place % 2 == 0) & np.isin(classes, classes[tested])
    if len(np.unique(classes[trained])) < 2:
        return float("nan")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = values[trained].mean(0), values[trained].std(0)
        values -= mean
        values /= np.where(scale > 0, scale, 1)
    if not np.isfinite(values).all():
        return float("nan")
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
