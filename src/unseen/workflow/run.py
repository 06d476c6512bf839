"""One run, from built parts to its record: train, measure, write, draw."""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from unseen.data.manifest import Manifest
from unseen.data.module import DataModule
from unseen.evaluation.measure import (
    Evaluate,
    Measurement,
    Scores,
    measure,
    measure_untrained,
    measure_validation,
)
from unseen.evaluation.probe import measure_probe
from unseen.evaluation.untrained import worse_than_untrained
from unseen.nn.allocator import keep_freed_memory
from unseen.nn.lora import merge
from unseen.pictures import training_curves
from unseen.tracking.dashboards import (
    begin,
    finish,
    log_errors,
    log_pictures,
    log_projection,
    log_results,
    shows_errors,
)
from unseen.tracking.environment import Environment, PeakMemory
from unseen.tracking.record import RunRecord, save_queries
from unseen.tracking.table import results_table
from unseen.training.checkpoints import Checkpoints
from unseen.training.learner import MetricLearner
from unseen.training.stopping import Stopped, orderly_stop, stop_together
from unseen.training.throughput import Throughput
from unseen.workflow.draw import draw, projected
from unseen.workflow.errors import worst_queries
from unseen.workflow.feature_maps import keep_feature_maps
from unseen.workflow.queries import query_columns, retrieval_sheet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run is measured.

    Args:
        test: whether the test classes are measured; without them, the validation classes alone are.
        seed: of every draw: the protocol's, so that runs of other seeds are measured alike.
        draws: of matched galleries.
        resamples: of test classes, for intervals.
        probe_classes: of the linear probe; 0 for none.
        probe_images: of each class.
    """

    test: bool
    seed: int
    draws: int
    resamples: int
    probe_classes: int
    probe_images: int

    @property
    def of_galleries(self) -> dict[str, int]:
        """What `measure` takes."""
        return {"seed": self.seed, "draws": self.draws, "resamples": self.resamples}

    @property
    def of_probe(self) -> dict[str, int]:
        """What `measure_probe` takes."""
        return {"classes": self.probe_classes, "images": self.probe_images, "seed": self.seed}


@dataclass
class Run:
    """Everything a run needs, built and checked; nothing slow has happened yet.

    Args:
        config: resolved, as plain data.
        choices: group → choice.
        overrides: as typed.
        folder: where the run writes.
        data: images and their split.
        learner: embedder, loss and adversary.
        trainer: with its callbacks and loggers.
        evaluate: embeddings and labels → retrieval result.
        evaluation: how it is measured.
        seed: of initialisation, order, augmentation and pictures.
        job_key: names what is trained.
        weights: hash of the file of initial weights; none without a file.
        resume_from: a checkpoint to go on from.
        cache_dir: of what is kept for other runs too.
        draws_pictures: whether pictures are drawn at the end.
        seconds: stage → duration, filled while the run goes on.
        pictures: name → file, filled at the end.
        record: once the run is measured.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    overrides: list[str]
    folder: Path
    data: DataModule
    learner: MetricLearner
    trainer: Trainer
    evaluate: Evaluate
    evaluation: EvaluationSettings
    seed: int
    job_key: str
    weights: str | None
    resume_from: Path | None
    cache_dir: Path
    draws_pictures: bool
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    record: RunRecord | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - start, 3)

    @property
    def checkpoints(self) -> Checkpoints:
        """The callback that keeps weights; a user's callbacks may hold others."""
        return next(one for one in self.trainer.checkpoint_callbacks if isinstance(one, Checkpoints))


def execute(run: Run) -> RunRecord | None:
    """Train, measure the test classes once, write the record, draw; loggers are closed whatever happens.

    A run that fails or is stopped leaves a record too, with its error.

    Returns:
        The record; none in the helping processes of a distributed run, which are done when training is.
    """
    status = "failed"
    try:
        with orderly_stop():
            record = _execute(run)
        status = "success"
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        _record_failure(run, error, status)
        raise
    finally:
        finish(run.trainer.loggers, status)
    return record


def _execute(run: Run) -> RunRecord | None:
    run.data.manifest.save(run.folder / "manifest.csv")
    begin(run.trainer.loggers, {**run.config, "choices": run.choices, "run": _facts(run)})
    device = run.trainer.strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()
    _keep_feature_maps(run)
    measures = run.evaluation.test and rank_zero_only.rank == 0  # type: ignore[attr-defined]
    untrained = _measure_untrained(run) if measures else None
    stop_together(run.trainer)
    with run.timed("train"):
        # A file of a user's own making is no program: nothing is unpickled but plain data.
        run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=run.resume_from, weights_only=True)
        if run.trainer.received_sigterm:  # in the last step of all
            raise Stopped(signal.SIGTERM)
    if not run.trainer.is_global_zero:
        return None
    _warn_if_no_step_was_made(run)
    chosen_epoch = _restore_chosen(run)
    merge(run.learner.embedder.backbone)
    run.learner.to(device)  # Lightning leaves the learner on the CPU
    if untrained is None:
        return _validated(run, chosen_epoch)
    with run.timed("measure"):
        measured = measure(run.learner.embedder, run.data, run.evaluate, **run.evaluation.of_galleries)
    record = _record(run, measured, untrained, chosen_epoch)
    _save(run, record, measured)
    record = _probed(run, record)
    _show(run, record, measured)
    return record


def _keep_feature_maps(run: Run) -> None:
    backbone = run.learner.embedder.backbone
    if not backbone.frozen:
        return
    with run.timed("feature_maps"):
        keep_feature_maps(
            backbone,
            run.data,
            cache_dir=run.cache_dir,
            device=run.trainer.strategy.root_device,
            test=run.evaluation.test,
        )


def _facts(run: Run) -> dict[str, Any]:
    """What a dashboard filters runs by and the config does not say."""
    return {
        "job_key": run.job_key,
        "split": run.data.split.fingerprint,
        "manifest": run.data.manifest.content_hash,
        "weights": run.weights,
        "parameters": _parameters(run),
        "commit": Environment.here().commit,
        "command": shlex.join(["unseen", "train", *run.overrides]),
        "folder": str(run.folder),
    }


def _parameters(run: Run) -> int:
    embedder = run.learner.embedder
    fixed = sum(p.numel() for p in embedder.backbone.parameters()) if embedder.backbone.frozen else 0
    return sum(p.numel() for p in embedder.parameters()) - fixed


def _validated(run: Run, chosen_epoch: int) -> RunRecord:
    """Of a run whose test classes nobody looks at."""
    with run.timed("measure"):
        metrics = measure_validation(run.learner.embedder, run.data, run.evaluate)
    record = dataclasses.replace(_trained_record(run, chosen_epoch), metrics={"validation": metrics})
    run.record = record
    record.save(run.folder / "record.json")
    results = {f"validation/{name}": value for name, value in metrics.items()}
    log_results(run.trainer.loggers, results, run.trainer.global_step)
    return record


def _measure_untrained(run: Run) -> Scores:
    run.learner.to(run.trainer.strategy.root_device)
    with run.timed("measure_untrained"):
        return measure_untrained(
            run.learner.embedder.backbone, run.data, run.evaluate, **run.evaluation.of_galleries
        )


def _warn_if_no_step_was_made(run: Run) -> None:
    if run.trainer.global_step == run.checkpoints.resumed_step:
        log.warning("Nothing was left to train: raise trainer.max_epochs to go on. It is measured again.")
    elif run.trainer.global_step == 0 and run.trainer.max_epochs != 0:
        log.warning(
            "Not one step was made (see trainer.limit_train_batches, max_steps and max_time): "
            "what is measured are untrained weights."
        )


def _restore_chosen(run: Run) -> int:
    """Load the weights of the epoch that the validation classes chose; without them, the last stay.

    Returns:
        The number of epochs that the weights were trained.
    """
    best = run.checkpoints.best_model_path if run.checkpoints.monitor else ""
    if not best:
        return int(run.trainer.current_epoch)
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    run.learner.load_state_dict(checkpoint["state_dict"])
    log.info("Measuring the weights of %s.", best)
    return int(checkpoint["epoch"]) + 1


def _record(run: Run, measured: Measurement, untrained: Scores, chosen_epoch: int) -> RunRecord:
    return with_scores(_trained_record(run, chosen_epoch), run.data.manifest, measured, untrained)


def with_scores(record: RunRecord, manifest: Manifest, measured: Measurement, untrained: Scores) -> RunRecord:
    """The record with what was measured, in place of anything that it had."""
    classes = [manifest.class_names[int(label)] for label in measured.unseen.classes]
    return dataclasses.replace(
        record,
        metrics={**measured.metrics, **untrained.metrics},
        spread={**measured.spread, **untrained.spread},
        intervals={**measured.intervals, **untrained.intervals},
        participation={**measured.participation, **untrained.participation},
        per_class={
            metric: dict(zip(classes, values.tolist(), strict=True))
            for metric, values in measured.unseen.per_class.items()
        },
    )


def _trained_record(run: Run, chosen_epoch: int) -> RunRecord:
    """What is known when training is over."""
    callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((callback for callback in callbacks if isinstance(callback, Throughput)), Throughput())
    adversary = run.learner.adversary
    return dataclasses.replace(
        _bare_record(run),
        images_per_second=throughput.images_per_second,
        chosen_epoch=chosen_epoch,
        adversary_strength=None
        if adversary is None
        else adversary.strength_at(run.learner.progress, max(0, run.trainer.current_epoch - 1)),
    )


def _bare_record(run: Run) -> RunRecord:
    """What is known of a run without its results."""
    gpus = range(torch.cuda.device_count())
    total = run.checkpoints.earlier_seconds + run.seconds.get("train", 0.0)
    return RunRecord(
        choices=run.choices,
        seed=run.seed,
        config=run.config,
        split=run.data.split.fingerprint,
        manifest=run.data.manifest.content_hash,
        metrics={},
        seconds={**run.seconds, "train_total": round(total, 3)},
        overrides=run.overrides,
        job_key=run.job_key,
        steps=run.trainer.global_step,
        parameters=_parameters(run),
        weights=run.weights,
        resumed_from=None if run.resume_from is None else str(run.resume_from),
        peak_memory=PeakMemory.here(max(map(torch.cuda.max_memory_allocated, gpus), default=None)),
        environment=Environment.here([torch.cuda.get_device_name(index) for index in gpus]),
    )


def _record_failure(run: Run, error: BaseException, status: str) -> None:
    """What was measured before the failure is kept; what fails here must not hide why the run failed."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    message = f"{type(error).__name__}: {error}"
    record = dataclasses.replace(run.record or _bare_record(run), status=status, error=message)
    try:
        record.save(run.folder / "record.json")
    except (OSError, ValueError) as problem:
        log.warning("The record of the failure cannot be written: %s", problem)


def _save(run: Run, record: RunRecord, measured: Measurement) -> None:
    run.record = record
    record.save(run.folder / "record.json")
    save_queries(run.folder / "queries.npz", query_columns(measured))
    sheet = retrieval_sheet(run.data, measured)
    sheet.save(run.folder / "retrieval_sheet.json")


def _probed(run: Run, record: RunRecord) -> RunRecord:
    """The record with the linear probe's accuracies, which are sought when all else is safe."""
    with run.timed("probe"):
        accuracies = measure_probe(run.learner.embedder, run.data, **run.evaluation.of_probe)
    if not accuracies:
        return record
    record = dataclasses.replace(with_probe(record, accuracies), seconds={**record.seconds, **run.seconds})
    run.record = record
    record.save(run.folder / "record.json")
    return record


def with_probe(record: RunRecord, accuracies: Mapping[str, float]) -> RunRecord:
    """The record with the linear probe's accuracy beside the metrics of each split that was probed."""
    metrics = {
        split: {**values, "probe_accuracy": accuracies[split]} if split in accuracies else values
        for split, values in record.metrics.items()
    }
    return dataclasses.replace(record, metrics=metrics)


def _show(run: Run, record: RunRecord, measured: Measurement) -> None:
    """The table on the terminal; results and pictures to the loggers."""
    results = {
        f"{split}/{name}": value for split, values in record.metrics.items() for name, value in values.items()
    }
    console = Console()
    parts = [run.choices.get(group) for group in ("data", "loss", "ablation")]
    title = " · ".join([*(part for part in parts if part not in (None, "None")), f"seed {run.seed}"])
    table = results_table(record.metrics, spread=record.spread, intervals=record.intervals, title=title)
    console.print(table)
    if (warning := worse_than_untrained(record.metrics)) is not None:
        log.warning(warning)
    log_results(run.trainer.loggers, results | _costs(record), run.trainer.global_step)
    if run.draws_pictures:
        _draw(run, measured)
    speed = record.images_per_second
    at = f" at {speed:.0f} images/s" if math.isfinite(speed) else ""
    console.print(
        f"Trained {record.seconds['train']:.0f} s{at}, measured {record.seconds['measure']:.0f} s. "
        f"Everything is in {run.folder}",
        soft_wrap=True,
    )


def _costs(record: RunRecord) -> dict[str, float]:
    costs = {
        "train_seconds": record.seconds["train_total"],
        "images_per_second": record.images_per_second,
        "parameters": record.parameters,
        "chosen_epoch": record.chosen_epoch,
        "host_bytes": record.peak_memory.host_bytes,
        "accelerator_bytes": record.peak_memory.accelerator_bytes,
    }
    return {f"cost/{name}": value for name, value in costs.items() if value is not None}


def _draw(run: Run, measured: Measurement) -> None:
    for logger in run.trainer.loggers:
        logger.save()
    try:
        run.pictures = draw(run.folder / "pictures", run.learner.embedder, run.data, measured, run.seed)
    except (ValueError, RuntimeError) as problem:  # the run is trained and measured all the same
        log.warning("No pictures: %s", problem)
    if (curves := _curves(run)) is not None:
        run.pictures["curves"] = curves
    log_pictures(run.trainer.loggers, run.pictures)
    projectors = [one for one in run.trainer.loggers if isinstance(one, TensorBoardLogger)]
    if projectors:
        log_projection(projectors, *projected(run.data, measured))
    if shows_errors(run.trainer.loggers):
        log_errors(run.trainer.loggers, *worst_queries(run.data, measured))


def _curves(run: Run) -> Path | None:
    """The training curves; none where this run had nothing left to train."""
    try:
        return training_curves(run.folder / "pictures" / "curves.png", run.folder / "metrics.csv")
    except (OSError, ValueError) as problem:
        log.warning("No training curves: %s", problem)
        return None
