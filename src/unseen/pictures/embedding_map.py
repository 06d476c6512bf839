"""The embedding space of unseen classes, flattened to two dimensions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from colorsys import hls_to_rgb
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from unseen.pictures.canvas import GREY, PALE, Image, new_figure, save, shortened, write

FEWEST_CLASSES = 20
"""That there is room for, where there are as many."""
WIDTH, HEIGHT, MARGIN = 11.5, 9.2, 1.75  # inches


def choose_images(labels: NDArray[np.int64], at_most: int = 2000) -> NDArray[np.int64]:
    """Rows to draw: all, or of a large set as many whole classes as there is room for; no randomness.

    A class of more than a twentieth of the room shows its first images, so that there are others beside it.

    Args:
        labels: `(N,)`.
        at_most: rows to choose; t-SNE takes seconds for thousands and minutes for tens of thousands.

    Returns:
        `(M,)` ascending row numbers, M ≤ `at_most`.
    """
    labels = np.asarray(labels)
    if len(labels) <= at_most:
        return np.arange(len(labels))
    present, sizes = np.unique(labels, return_counts=True)
    share = max(1, at_most // min(len(present), FEWEST_CLASSES))
    taken = np.minimum(sizes, share)
    kept = bisect_right(
        range(len(present)), at_most, key=lambda last: taken[_spread(len(present), last + 1)].sum()
    )
    while taken[_spread(len(present), kept)].sum() > at_most:  # more classes may be smaller ones
        kept -= 1
    chosen = [np.flatnonzero(labels == label)[:share] for label in present[_spread(len(present), kept)]]
    return np.sort(np.concatenate(chosen))


def _spread(most: int, count: int) -> NDArray[np.int64]:
    """`(count,)` of 0 … most − 1, evenly."""
    return np.linspace(0, most - 1, count).round().astype(np.int64)


def project(embeddings: NDArray[np.floating], seed: int = 0) -> NDArray[np.float64]:
    """Two dimensions by PCA to at most 50, then t-SNE (van der Maaten & Hinton 2008).

    Neighbourhoods survive; distances between groups do not mean much.

    Args:
        embeddings: `(N, d)`, at least 3 of them.
        seed: of t-SNE; the same seed gives the same picture on the same machine.

    Returns:
        `(N, 2)`.

    Raises:
        ValueError: there are fewer than 3 points.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    count, size = embeddings.shape
    if count < 3:
        raise ValueError(f"{count} points: a map needs at least 3.")
    reduced = PCA(min(50, size, count), random_state=seed).fit_transform(embeddings)
    perplexity = min(30.0, (count - 1) / 3)
    # Its start by PCA needs two dimensions, and divides by the spread along the first: of points that are all
    # the same NaN would come, and end the process.
    spreads = reduced.shape[1] > 1 and reduced[:, 0].std() > 0
    tsne = TSNE(perplexity=perplexity, init="pca" if spreads else "random", random_state=seed)
    return tsne.fit_transform(reduced).astype(np.float64)


def embedding_map(
    path: Path,
    points: NDArray[np.floating],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    image_of: Callable[[int], Image],
    max_classes: int = 20,
    title: str = "Unseen classes in the embedding space (t-SNE)",
) -> Path:
    """Points in the colour of their class; beside them an image and the name of each coloured class.

    Args:
        path: PNG to write.
        points: `(N, 2)`, as `project` gives them.
        labels: `(N,)`, positions in `class_names`.
        class_names: of all classes.
        image_of: position in `points` → image `(H, W, 3)` uint8; asked once for each coloured class.
        max_classes: that are coloured; of more, every n-th is, and the rest are grey.
        title: heading.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    present = np.unique(labels)
    colored = present[_spread(len(present), min(max_classes, len(present)))]
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_axes((MARGIN / WIDTH, 0.02, 1 - 2 * MARGIN / WIDTH, 0.91))
    axes.set_axis_off()
    others = ~np.isin(labels, colored)
    axes.scatter(points[others, 0], points[others, 1], s=7, color=PALE, linewidths=0)
    classes = []
    for label, color in zip(colored, _colors(len(colored)), strict=True):
        members = np.flatnonzero(labels == label)
        own = points[members]
        axes.scatter(own[:, 0], own[:, 1], s=16, color=color, linewidths=0, alpha=0.9)
        # The member nearest to the median of its class, which outliers do not move.
        center = int(members[np.argmin(((own - np.median(own, axis=0)) ** 2).sum(axis=1))])
        classes.append(_Colored(class_names[label], color, center))
    axes.margins(0.03)
    _place_thumbnails(figure, axes, points, classes, image_of)
    note = (
        f"{len(colored)} of {len(present)} classes in colour" if others.any() else f"{len(present)} classes"
    )
    write(figure, 0.02, 0.965, title, fontsize=13, weight="bold", va="center")
    write(figure, 0.98, 0.965, f"{len(points)} images, {note}", color=GREY, ha="right", va="center")
    return save(figure, path)


class _Colored(NamedTuple):
    name: str
    color: tuple[float, float, float]
    center: int
    """Position of its most central image."""


def _colors(count: int) -> list[tuple[float, float, float]]:
    """Hues a golden angle apart, in turn darker and lighter."""
    return [hls_to_rgb(i * 0.6180339887498949 % 1, (0.38, 0.55)[i % 2], 0.72) for i in range(count)]


def _place_thumbnails(
    figure: Figure,
    axes: Axes,
    points: NDArray[np.floating],
    classes: Sequence[_Colored],
    image_of: Callable[[int], Image],
) -> None:
    """In a column at either side, in the order of height, so that lines to the classes hardly cross."""
    by_x = sorted(classes, key=lambda one: float(points[one.center, 0]))
    half = (len(by_x) + 1) // 2
    for left, column in ((True, by_x[:half]), (False, by_x[half:])):
        slot = min(1.15, 0.9 * HEIGHT / max(1, len(column)))
        side = min(0.72, slot - 0.2)
        for rank, one in enumerate(sorted(column, key=lambda one: -float(points[one.center, 1]))):
            middle = 0.475 * HEIGHT + ((len(column) - 1) / 2 - rank) * slot
            x = 0.55 if left else WIDTH - 0.55 - side
            place = (x / WIDTH, (middle - side / 2 + 0.07) / HEIGHT, side / WIDTH, side / HEIGHT)
            thumbnail = figure.add_axes(place, xticks=[], yticks=[])
            thumbnail.imshow(np.asarray(image_of(one.center)), aspect="auto", interpolation="lanczos")
            thumbnail.spines[:].set(color=one.color, linewidth=2.5)
            style = {"transform": thumbnail.transAxes, "ha": "center", "va": "top", "fontsize": 7.5}
            write(thumbnail, 0.5, -0.06, shortened(one.name, 18), **style)
            line = ConnectionPatch(
                xyA=(1.0 if left else 0.0, 0.5),
                coordsA=thumbnail.transAxes,
                xyB=(float(points[one.center, 0]), float(points[one.center, 1])),
                coordsB=axes.transData,
                color=one.color,
                linewidth=0.9,
                alpha=0.7,
            )
            figure.add_artist(line)
