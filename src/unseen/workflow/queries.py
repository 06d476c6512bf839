"""What a run keeps of single queries: their neighbours and places, and a sheet of some with pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen.data.module import DataModule
from unseen.evaluation.measure import Measurement
from unseen.evaluation.projection import principal_plane
from unseen.tracking.sheet import RetrievalSheet, SheetRow, thumbnail

KEPT = 10
"""Neighbours of a query that are kept."""
QUERIES, NEIGHBOURS = 24, 8
"""Of the sheet."""


def query_columns(measured: Measurement) -> dict[str, NDArray[np.generic]]:
    """A column for each thing that is known of a query; `save_queries` writes them.

    Returns:
        `ids` and `labels` `(N,)`; every metric `(N,)`; `neighbours` `(N, k)`, rows of the manifest, and
        `similarities` `(N, k)`, k ≤ 10, -1 and -inf where the gallery has no more; `position` `(N, 2)` on the
        plane of largest variance.
    """
    nearest = measured.unseen.neighbours
    positions = nearest.positions[:, :KEPT]
    columns = {
        "ids": measured.queries.ids,
        "labels": measured.queries.labels,
        **measured.unseen.per_query,
        "neighbours": measured.gallery.ids[positions].masked_fill(positions < 0, -1),
        "similarities": nearest.similarities[:, :KEPT],
        "position": principal_plane(measured.queries.embeddings),
    }
    return {name: column.numpy() for name, column in columns.items()}


def retrieval_sheet(data: DataModule, measured: Measurement) -> RetrievalSheet:
    """Some queries with their nearest neighbours; a split always shows the same queries.

    Args:
        data: gives images and names.
        measured: the result on unseen classes.
    """
    seed = int(data.split.fingerprint[:16], 16)
    unseen, ids = measured.unseen, measured.gallery.ids
    answerable = np.flatnonzero(unseen.relevant.numpy() > 0)
    chosen = answerable[spread_over_classes(unseen.labels.numpy()[answerable], QUERIES, seed)]
    rows = []
    for row in chosen:
        found = int((unseen.neighbours.positions[row, :NEIGHBOURS] >= 0).sum())
        rows.append(
            SheetRow(
                int(measured.queries.ids[row]),
                ids[unseen.neighbours.positions[row, :found]].tolist(),
                [round(value, 4) for value in unseen.neighbours.similarities[row, :found].tolist()],
                unseen.hits[row, :found].tolist(),
            )
        )
    shown = sorted({image for row in rows for image in (row.query, *row.neighbours)})
    names, labels = data.manifest.class_names, data.manifest.labels
    return RetrievalSheet(
        data.split.fingerprint,
        data.manifest.content_hash,
        rows,
        {image: names[int(labels[image])] for image in shown},
        {image: thumbnail(data.image(image)) for image in shown},
    )


def spread_over_classes(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Positions of one item of each class before a second of any, in random order.

    Args:
        labels: `(N,)`.
        count: how many to choose.
        seed: of the order of classes and of items.

    Returns:
        `(min(count, N),)` positions.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    turn = np.zeros(len(labels), dtype=np.int64)
    given: dict[int, int] = {}
    for position in order:
        label = int(labels[position])
        turn[position] = given[label] = given.get(label, -1) + 1
    return order[np.argsort(turn[order], kind="stable")][:count]
