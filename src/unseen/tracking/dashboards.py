"""Loggers beyond the CSV: a W&B run that is online when it can be and says so when it is not."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

log = logging.getLogger(__name__)


def has_wandb_key() -> bool:
    """Whether an API key is configured: in the environment, or for W&B's host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    host = urlparse(address).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(project: str, folder: str, group: str, tags: Sequence[str]) -> WandbLogger:
    """A W&B logger: online with an API key, else offline with a word on how to upload.

    Args:
        project: W&B project.
        folder: the run's folder; its name is the run's name.
        group: runs that a dashboard shows together.
        tags: what a dashboard filters by.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    chosen = os.environ.get("WANDB_MODE")
    offline = not has_wandb_key() if chosen is None else chosen in ("offline", "dryrun")
    if offline and chosen is None:
        log.warning(
            "No W&B API key found: logging offline into %s. Upload it later with "
            "`wandb sync %s/wandb/offline-run-*`, or set WANDB_API_KEY before the next run.",
            folder,
            folder,
        )
    return WandbLogger(
        project=project,
        save_dir=folder,
        name=Path(folder).name,
        group=group,
        tags=list(tags),
        offline=offline,
    )


def log_pictures(loggers: Iterable[Logger], pictures: Mapping[str, Path]) -> None:
    """Send PNG files to the loggers that show pictures."""
    for logger in loggers:
        for name, path in pictures.items():
            if isinstance(logger, WandbLogger):
                logger.log_image(key=f"pictures/{name}", images=[str(path)])
            elif isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image(f"pictures/{name}", pixels, dataformats="HWC")


def log_projection(
    loggers: Iterable[Logger], embeddings: np.ndarray, names: Sequence[str], images: Any
) -> None:
    """Send a sample of the unseen images to TensorBoard's projector.

    Args:
        loggers: those that are not TensorBoard's do not get it.
        embeddings: `(N, d)`.
        names: class name of each.
        images: float tensor `(N, 3, s, s)` in [0, 1]: the projector draws them in place of points.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_embedding(embeddings, metadata=list(names), label_img=images, tag="unseen")


def log_results(loggers: Iterable[Logger], results: Mapping[str, float], step: int) -> None:
    """Send the final results, by name, to every logger; W&B shows them as columns of its runs."""
    for logger in loggers:
        logger.log_metrics(dict(results), step=step)
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(results))


def finish(loggers: Iterable[Logger], status: str) -> None:
    """Close every logger, also after a failure, so that the next run of a sweep starts its own.

    Args:
        loggers: all loggers of the run.
        status: `success` or `failed`.
    """
    for logger in loggers:
        logger.finalize(status)
    if wandb.run is not None:
        wandb.finish(exit_code=0 if status == "success" else 1)
