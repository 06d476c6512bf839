"""Queries and their nearest neighbours, each framed as right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unseen.pictures.canvas import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    Image,
    new_figure,
    save,
    shortened,
    write,
)

CELL, HEADER, CAPTION, GUTTER = 1.12, 0.62, 0.34, 0.3  # inches


def choose_queries(hits: NDArray[np.bool_], labels: NDArray[np.int64], count: int = 8) -> NDArray[np.int64]:
    """Some failures and some successes, of as many classes as possible; no randomness.

    Half of them have a wrong first neighbour, if there are so many; failures come first, the worst at the
    top. Within a class, rows are preferred in their order.

    Args:
        hits: `(N, k)`, which neighbours are right.
        labels: `(N,)`.
        count: how many to choose.

    Returns:
        `(min(count, N),)` row numbers.
    """
    hits, labels = np.asarray(hits, dtype=bool), np.asarray(labels)
    wrong = _one_of_each_class(np.flatnonzero(~hits[:, 0]), labels)
    right = _one_of_each_class(np.flatnonzero(hits[:, 0]), labels)
    wrong = wrong[: max(count // 2, count - len(right))]
    # Successes of classes that have not failed yet come first.
    right = right[np.argsort(np.isin(labels[right], labels[wrong]), kind="stable")]
    chosen = np.concatenate([wrong, right[: count - len(wrong)]])
    return chosen[np.argsort(hits[chosen].mean(axis=1) + hits[chosen, 0], kind="stable")]


def _one_of_each_class(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same rows: first one of each class, spread over all classes, then the second of each, and so on."""
    turn = np.zeros(len(rows), dtype=np.int64)
    seen: dict[int, int] = {}
    for position, row in enumerate(rows):
        label = int(labels[row])
        turn[position] = seen[label] = seen.get(label, -1) + 1
    # Equal steps through the classes by the golden ratio, so that the first few are not all neighbours.
    _, rank = np.unique(labels[rows], return_inverse=True)
    spread = (rank * 0.6180339887498949) % 1
    return rows[np.lexsort((spread, turn))]


def retrieval_sheet(
    path: Path,
    queries: Sequence[Image],
    query_names: Sequence[str],
    neighbours: Sequence[Sequence[Image]],
    neighbour_names: Sequence[Sequence[str]],
    similarities: NDArray[np.floating],
    hits: NDArray[np.bool_],
    title: str = "Nearest neighbours among unseen classes",
) -> Path:
    """A row for each query: the query, then its neighbours with similarity, class, frame and mark.

    Args:
        path: PNG to write.
        queries: `Q` images `(H, W, 3)` uint8.
        query_names: `Q` class names.
        neighbours: `Q` lists of `k` images.
        neighbour_names: `Q` lists of `k` class names.
        similarities: `(Q, k)`.
        hits: `(Q, k)`, which neighbours are of the query's class.
        title: heading.

    Raises:
        ValueError: there is no query, or the shapes disagree.
    """
    similarities, hits = np.asarray(similarities), np.asarray(hits, dtype=bool)
    _check(len(queries), (len(query_names), len(neighbours), len(neighbour_names)), similarities, hits)
    rows, columns = hits.shape
    width = (columns + 1) * CELL + GUTTER + 0.2
    height = rows * (CELL + CAPTION) + HEADER
    figure = new_figure(width, height)
    write(figure, 0.1 / width, 1 - 0.24 / height, title, fontsize=13, weight="bold", va="center")
    _legend(figure, width, height)
    for row in range(rows):
        bottom = height - HEADER - (row + 1) * (CELL + CAPTION) + CAPTION
        query = _cell(figure, 0.1, bottom, queries[row])
        _frame(query, BLACK, 1.2)
        _caption(query, "query", query_names[row], GREY)
        for rank in range(columns):
            axes = _cell(figure, 0.1 + GUTTER + (rank + 1) * CELL, bottom, neighbours[row][rank])
            right = bool(hits[row, rank])
            _frame(axes, BLUE if right else ORANGE, 4.0)
            _badge(axes, right)
            name = neighbour_names[row][rank]
            _caption(axes, f"{similarities[row, rank]:.2f}", name, BLUE if right else ORANGE)
    return save(figure, path)


def _check(rows: int, lengths: tuple[int, ...], *tables: NDArray[np.generic]) -> None:
    if rows == 0:
        raise ValueError("There is no query to draw.")
    shapes = {table.shape for table in tables}
    if len(shapes) != 1 or tables[0].shape[0] != rows or set(lengths) != {rows}:
        raise ValueError(f"{rows} queries, but lists of {lengths} and tables of {shapes}: they must agree.")


def _cell(figure: Figure, left: float, bottom: float, image: Image) -> Axes:
    width, height = figure.get_size_inches()
    side = CELL - 0.16
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    axes.imshow(np.asarray(image), aspect="auto", interpolation="lanczos")
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _frame(axes: Axes, color: str, thickness: float) -> None:
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(thickness)


def _badge(axes: Axes, right: bool) -> None:
    """The mark that says the same as the colour."""
    axes.text(
        0.985,
        0.985,
        "✓" if right else "✗",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=9,
        color="white",
        weight="bold",
        bbox={"facecolor": BLUE if right else ORANGE, "edgecolor": "none", "pad": 1.6},
    )


def _caption(axes: Axes, value: str, name: str, color: str) -> None:
    style = {"transform": axes.transAxes, "ha": "center", "va": "top"}
    write(axes, 0.5, -0.05, value, fontsize=7.5, color=color, weight="bold", **style)
    write(axes, 0.5, -0.175, shortened(name, 15), fontsize=7, **style)


def _legend(figure: Figure, width: float, height: float) -> None:
    y = 1 - 0.24 / height
    style = {"ha": "right", "va": "center", "fontsize": 9, "weight": "bold"}
    write(figure, 1 - 0.95 / width, y, "✓ same class", color=BLUE, **style)
    write(figure, 1 - 0.12 / width, y, "✗ other", color=ORANGE, **style)
