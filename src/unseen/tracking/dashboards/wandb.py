"""Weights & Biases: online when it has a key, offline with a word on how to upload; one run stays one run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from unseen.tracking.dashboards.card import Identity, RunCard
from unseen.tracking.dashboards.loggers import (
    QueryError,
    finish_one,
    log_errors_one,
    log_pictures_one,
    log_results_one,
    shows_errors_one,
)
from unseen.tracking.redaction import redacted

log = logging.getLogger(__name__)

EXIT_CODES = {"success": 0, "interrupted": 255}
"""Status → what W&B is told; 255 is its own code for a run that was stopped, anything else is a failure."""

LONGEST_TAG = 64
THUMBNAIL = 96  # pixels, the longer side

AXES = {"train/*": "epoch", "probe/*": "epoch", "validation/*": "epoch", "lr-*": "trainer/global_step"}
"""Metrics → their axis. No name may fit two: W&B takes either then, from one run to the next."""


class EpochLogger(WandbLogger):
    """Lightning's, but with epochs as the axis of what comes once an epoch, and the best of validation."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins when it is first asked for."""
        import wandb

        if self._experiment is None and wandb.run is None and not hasattr(self, "_attach_id"):
            with _public_arguments():
                self._experiment = wandb.init(**self._wandb_init)
            for axis in ("epoch", "trainer/global_step"):
                self._experiment.define_metric(axis, hidden=True)
            for metrics, axis in AXES.items():
                best = "max" if metrics == "validation/*" else None
                self._experiment.define_metric(metrics, step_metric=axis, step_sync=True, summary=best)
        return super().experiment


@contextmanager
def _public_arguments() -> Iterator[None]:
    """While W&B takes down how the program was called, which may have been with a token."""
    before = sys.argv
    sys.argv = redacted(before)
    try:
        yield
    finally:
        sys.argv = before


def has_key() -> bool:
    """Whether wandb finds credentials where it looks for them: environment, settings, netrc of its hosts.

    Raises:
        ValueError: it finds some that cannot be right.
    """
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.errors.AuthenticationError as error:
        raise ValueError(f"logger=wandb: {error} Run `wandb login`, or set WANDB_MODE=offline.") from error


def wandb_logger(
    card: RunCard,
    *,
    project: str,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    id: str | None = None,
    log_model: Literal["all"] | bool = False,
) -> WandbLogger:
    """A W&B logger; what is none is made from the run, unless one of wandb's environment variables says it.

    Args:
        card: the run.
        project: W&B project.
        entity: user or team; none for the default of the account.
        name: of the run.
        group: runs that a dashboard averages over.
        job_type: `train`, or `tune` for the trials of a search.
        tags: beside those of data, loss, ablation and seed.
        id: of the run, in place of the run's own (see `RunCard.identify`).
        log_model: upload checkpoints as artifacts: at the end, or `all` of them as they are written.
    """
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    identity = card.identify() if is_first else Identity("", continues=False)
    card.folder.mkdir(parents=True, exist_ok=True)
    mine = [f"{label}:{value}" for label, value in card.labels.items()]
    return EpochLogger(
        project=project,
        entity=entity,
        save_dir=card.folder,
        name=name or _unless_set("WANDB_NAME", card.name),
        group=group or _unless_set("WANDB_RUN_GROUP", card.group),
        job_type=job_type,
        tags=[tag[:LONGEST_TAG] for tag in (*mine, *tags)],
        # An agent of a W&B sweep has chosen the id of each of its runs.
        id=id or _unless_set("WANDB_RUN_ID", identity.id),
        # Where an attempt that failed is repeated, the new one takes its place in the dashboard too.
        resume="allow" if id or identity.continues else None,
        mode=_mode(card.folder) if is_first else None,
        log_model=log_model,
    )


def _unless_set(variable: str, value: str) -> str | None:
    return None if os.environ.get(variable) else value


def _mode(folder: Path) -> Literal["online", "offline"] | None:
    """None where the environment decides.

    Not Lightning's `offline=True`: it writes `WANDB_MODE`, and so decides for all later runs of the process.
    """
    if os.environ.get("WANDB_MODE"):
        return None
    if has_key():
        return "online"
    log.warning(
        "No W&B API key found: logging offline into %s. Upload it later with "
        "`wandb sync %s/wandb/offline-run-*`, or run `wandb login` before the next run.",
        folder,
        folder,
    )
    return "offline"


@log_pictures_one.register
def _(logger: WandbLogger, pictures: Mapping[str, Path]) -> None:
    for name, path in pictures.items():
        logger.log_image(key=f"pictures/{name}", images=[str(path)])


@log_results_one.register
def _(logger: WandbLogger, results: Mapping[str, float], step: int) -> None:
    """Columns of the table of runs; a curve of one point would say no more."""
    logger.experiment.summary.update(dict(results))


@shows_errors_one.register
def _(logger: WandbLogger) -> bool:
    return True


@log_errors_one.register
def _(logger: WandbLogger, metric: str, errors: Sequence[QueryError]) -> None:
    import wandb

    count = max((len(error.neighbours) for error in errors), default=0)
    columns: list[str | int] = ["query", "class", "path", metric, "first neighbour"]
    columns += [f"neighbour {rank}" for rank in range(1, count + 1)]
    table = wandb.Table(columns=columns)
    for error in errors:
        found = [
            _thumbnail(one.image, f"{'✓' if one.is_right else '✗'} {one.name} {one.similarity:.2f}")
            for one in error.neighbours
        ]
        found += [None] * (count - len(found))
        first = error.neighbours[0].name if error.neighbours else None
        table.add_data(
            _thumbnail(error.image, error.name), error.name, error.path, error.value, first, *found
        )
    logger.experiment.log({"worst_queries": table})


def _thumbnail(pixels: np.ndarray, caption: str) -> Any:
    import wandb

    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return wandb.Image(image, caption=caption, file_type="jpg")


@finish_one.register
def _(logger: WandbLogger, status: str) -> None:
    import wandb

    logger.finalize(status)
    if wandb.run is not None:
        wandb.finish(exit_code=EXIT_CODES.get(status, 1))
