"""The steps of a run, for any logger; a dashboard registers what it does more than this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray


class Neighbour(NamedTuple):
    """What was found for a query.

    Args:
        image: `(H, W, 3)` uint8.
        name: of its class.
        similarity: to the query.
        is_right: whether it is of the query's class.
    """

    image: NDArray[np.uint8]
    name: str
    similarity: float
    is_right: bool


class QueryError(NamedTuple):
    """A query that was answered badly.

    Args:
        path: of the image, in the manifest.
        image: `(H, W, 3)` uint8.
        name: of its class.
        value: of the metric that calls it bad.
        neighbours: the nearest first.
    """

    path: str
    image: NDArray[np.uint8]
    name: str
    value: float
    neighbours: tuple[Neighbour, ...]


def begin(loggers: Iterable[Logger], settings: Mapping[str, Any]) -> None:
    """Send what the run is: its config, choices and facts, nested plain data."""
    for logger in loggers:
        begin_one(logger, settings)


def log_pictures(loggers: Iterable[Logger], pictures: Mapping[str, Path]) -> None:
    """Send PNG files, by name, to the loggers that show pictures."""
    for logger in loggers:
        log_pictures_one(logger, pictures)


def log_projection(
    loggers: Iterable[Logger], embeddings: NDArray[np.floating], names: Sequence[str], images: Any
) -> None:
    """Send a sample of the unseen images to the loggers that project embeddings.

    Args:
        loggers: all loggers of the run.
        embeddings: `(N, d)`.
        names: class name of each.
        images: float tensor `(N, 3, s, s)` in [0, 1], drawn in place of points.
    """
    for logger in loggers:
        log_projection_one(logger, embeddings, names, images)


def log_results(loggers: Iterable[Logger], results: Mapping[str, float], step: int) -> None:
    """Send the final results under flat names (`unseen/recall_at_1`)."""
    for logger in loggers:
        log_results_one(logger, results, step)


def shows_errors(loggers: Iterable[Logger]) -> bool:
    """Whether any of them shows the worst queries, so that their images need to be read."""
    return any(shows_errors_one(logger) for logger in loggers)


def log_errors(loggers: Iterable[Logger], metric: str, errors: Sequence[QueryError]) -> None:
    """Send the worst queries to the loggers that show them.

    Args:
        loggers: all loggers of the run.
        metric: by which they are the worst.
        errors: the worst first.
    """
    for logger in loggers:
        if shows_errors_one(logger):
            log_errors_one(logger, metric, errors)


def finish(loggers: Iterable[Logger], status: str) -> None:
    """Close every logger, also after a failure, so that the next run starts its own.

    Args:
        loggers: all loggers of the run.
        status: `success`, `failed` or `interrupted`.
    """
    for logger in loggers:
        finish_one(logger, status)


@singledispatch
def begin_one(logger: Logger, settings: Mapping[str, Any]) -> None:
    logger.log_hyperparams(dict(settings))


@singledispatch
def log_pictures_one(logger: Logger, pictures: Mapping[str, Path]) -> None:
    """Most loggers show none."""


@singledispatch
def log_projection_one(
    logger: Logger, embeddings: NDArray[np.floating], names: Sequence[str], images: Any
) -> None:
    """Most loggers have no projector."""


@singledispatch
def log_results_one(logger: Logger, results: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(results), step=step)


@singledispatch
def shows_errors_one(logger: Logger) -> bool:
    return False


@singledispatch
def log_errors_one(logger: Logger, metric: str, errors: Sequence[QueryError]) -> None:
    raise TypeError(f"{type(logger).__name__} says that it shows errors and does not.")


@singledispatch
def finish_one(logger: Logger, status: str) -> None:
    logger.finalize(status)
