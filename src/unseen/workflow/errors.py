"""The queries that were answered worst, with what was found for them, for the dashboards that show them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unseen.data.module import DataModule
from unseen.evaluation.measure import Measurement
from unseen.tracking.dashboards.loggers import Neighbour, QueryError
from unseen.tracking.table import metric_title

QUERIES = 32
NEIGHBOURS = 5


def worst_queries(
    data: DataModule, measured: Measurement, queries: int = QUERIES, neighbours: int = NEIGHBOURS
) -> tuple[str, list[QueryError]]:
    """At most so many queries, the worst first, each with its nearest neighbours.

    The worst are those of the lowest MAP@R (or of the first metric, where that was not asked for); of equals,
    those whose first neighbour is most similar: errors of which the network is most certain.

    Returns:
        The metric as the field writes it, and the queries. Those without a relevant item are left out.
    """
    values = measured.unseen.per_query
    metric = "map_at_r" if "map_at_r" in values else next(iter(values))
    rows = rank_worst(values[metric].numpy(), measured.unseen.neighbours.similarities[:, 0].numpy())[:queries]
    return metric_title(metric), [
        QueryError(
            data.manifest.paths[int(measured.queries.ids[row])],
            data.image(int(measured.queries.ids[row])),
            data.manifest.class_names[int(measured.queries.labels[row])],
            float(values[metric][row]),
            _found(data, measured, int(row), neighbours),
        )
        for row in rows
    ]


def rank_worst(values: NDArray[np.floating], similarities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows by ascending value, of equals the most similar first; NaN left out.

    Args:
        values: `(N,)`, of each query.
        similarities: `(N,)`, to its first neighbour.
    """
    order = np.lexsort((-similarities, values))
    return order[np.isfinite(values[order])]


def _found(data: DataModule, measured: Measurement, row: int, count: int) -> tuple[Neighbour, ...]:
    near = measured.unseen.neighbours
    return tuple(
        Neighbour(
            data.image(int(measured.gallery.ids[position])),
            data.manifest.class_names[int(measured.gallery.labels[position])],
            float(near.similarities[row, rank]),
            bool(measured.unseen.hits[row, rank]),
        )
        for rank, position in enumerate(near.positions[row, :count].tolist())
        if position >= 0
    )
