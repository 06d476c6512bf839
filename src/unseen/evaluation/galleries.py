"""Galleries of equal shape, drawn from seen and unseen images: what a generalisation gap is measured on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def matched_galleries(
    seen_labels: Rows,
    unseen_labels: Rows,
    *,
    seed: int,
    draw: int = 0,
    most_classes: int | None = None,
    most_images: int | None = None,
) -> tuple[Rows, Rows]:
    """Positions of seen and of unseen images that make two galleries of the same classes-and-images shape.

    Retrieval among few classes is easier than among many, so the generalisation gap compares galleries with
    equally many classes, and pairs of classes of equal size. As many classes as both have are drawn; the
    larger ones of one gallery meet the larger ones of the other; of each pair the larger is cut down, by a
    draw, to the smaller; pairs with a single image are dropped, as it could find nothing. Draws for seen and
    for unseen images are independent of each other.

    Args:
        seen_labels: `(M,)` of held-out images of training classes.
        unseen_labels: `(N,)` of test images.
        seed: of all draws.
        draw: which of them; each gives other galleries wherever there is something to choose.
        most_classes: draw no more classes than this.
        most_images: keep no more images of a class than this.

    Returns:
        Two arrays of positions, ascending, of the same length; empty if no pair of classes has two images.
    """
    members = [
        shuffled_classes(labels, seed, draw, stream)
        for stream, labels in enumerate((seen_labels, unseen_labels))
    ]
    count = min(len(classes) for classes in members)
    count = count if most_classes is None else min(count, most_classes)
    drawn = [sorted(classes[:count], key=len, reverse=True) for classes in members]
    pairs = [
        (seen[:size], unseen[:size])
        for seen, unseen in zip(*drawn, strict=True)
        if (size := min(len(seen), len(unseen), most_images or len(seen))) > 1
    ]
    return ascending([seen for seen, _ in pairs]), ascending([unseen for _, unseen in pairs])


def shuffled_classes(labels: Rows, *key: int) -> list[Rows]:
    """Positions of the images of each class: classes in random order, and the images of each.

    Args:
        labels: `(N,)`.
        key: of the draw; equal keys draw the same on any system and with any version of NumPy.
    """
    classes, starts = np.unique(np.sort(labels), return_index=True)
    bits = np.random.PCG64(np.random.SeedSequence([number % 2**64 for number in key]))
    order = np.lexsort((bits.random_raw(len(labels)), labels))
    members = np.split(order, starts[1:])
    return [members[place] for place in np.argsort(bits.random_raw(len(classes)), kind="stable")]


def ascending(members: list[Rows]) -> Rows:
    """All positions of some classes, in one ascending array."""
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *members]))
