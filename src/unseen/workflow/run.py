"""One run, from a config to its record: build and check everything, train, measure, write, draw."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unseen.data.cache import sources
from unseen.data.inspect.preflight import watched_preflight
from unseen.data.module import DataModule
from unseen.evaluation.measure import Evaluate, Measurement, measure
from unseen.nn.embedder import Embedder
from unseen.pictures import training_curves
from unseen.retrieval import evaluate
from unseen.tracking.dashboards import finish, log_pictures, log_results
from unseen.tracking.record import RunRecord
from unseen.tracking.table import results_table
from unseen.training.allocator import keep_freed_memory
from unseen.training.checkpoints import Checkpoints, check_resumable
from unseen.training.learner import MetricLearner
from unseen.training.throughput import Throughput
from unseen.workflow.draw import draw

log = logging.getLogger(__name__)
# Lightning introduces itself at length; what matters is in the progress bar and the table.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# The run's folder already holds the config; the CSV logger fears for old logs in it.
warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")

MONITOR = "validation/map_at_r"
LOADING_KEYS = (
    "workers",
    "evaluation_batch_size",
    "exclude",
    "on_error",
    "crop_to_box",
    "cache",
    "cache_size",
    "cache_dir",
)


@dataclass
class Run:
    """Everything a run needs, built and checked; nothing slow has happened yet.

    Args:
        config: resolved, as plain data.
        choices: Hydra group → choice.
        folder: where the run writes.
        data: images and their split.
        learner: embedder, loss and adversary.
        trainer: with its callbacks and loggers.
        evaluate: embeddings and labels → retrieval result.
        seconds: stage → duration, filled while the run goes on.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    folder: Path
    data: DataModule
    learner: MetricLearner
    trainer: Trainer
    evaluate: Evaluate
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of initialisation, order, augmentation and pictures."""
        return int(self.config["seed"])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)


def build(config: DictConfig) -> Run:
    """Instantiate every part in the order in which data meets them; each refuses what cannot work.

    Raises:
        hydra.errors.InstantiationException: a constructor refused; its cause says why, in words.
        ValueError: parts do not fit each other.
        OSError: a file or folder is missing.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(config.run_folder)
    evaluation = functools.partial(evaluate, **_plain(config.metrics))
    learner, data = _build_learner(config, evaluation)
    if config.resume_from is not None:
        check_resumable(learner, Path(config.resume_from))
    _look_before(config, data, folder)
    return Run(
        config=_plain(config),
        choices={group: str(choice) for group, choice in HydraConfig.get().runtime.choices.items()},
        folder=folder,
        data=data,
        learner=learner,
        trainer=_build_trainer(config, data, folder),
        evaluate=evaluation,
    )


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _look_before(config: DictConfig, data: DataModule, folder: Path) -> None:
    """Before a long run, refuse images that cannot be read and tests that leak; once a data set.

    Raises:
        ValueError: the data must not be trained on.
    """
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not is_first or not _is_long(config, len(data.split.train)):  # of several processes one looks for all
        return
    if not data.reads_files:
        return
    passed = Path(config.data.cache_dir).expanduser() / "checked" / _checked_key(config, data)
    if (passed / "report.json").is_file():
        return
    report = watched_preflight(
        data.manifest,
        config.check,
        Console(stderr=True),
        crop_to_box=config.data.crop_to_box,
        excluded=data.excluded,
        parts=data.split.parts,
    )
    report.write(folder / "check")
    if report.errors:
        raise ValueError(f"{report.errors[0]} The report is in {folder / 'check'}.")
    report.write(passed)


def _is_long(config: DictConfig, images: int) -> bool:
    if config.check_from is None:
        return False
    epochs = config.trainer.max_epochs
    endless = epochs is None or epochs < 0
    return endless or images * max(1, epochs) >= config.check_from


def _checked_key(config: DictConfig, data: DataModule) -> str:
    """Names what was looked at, where, by which rules: the look at anything else says nothing about it."""
    rules = {**_plain(config.check), "crop_to_box": config.data.crop_to_box}
    parts = (
        *(str(data.manifest.root.resolve()), data.split.fingerprint, sources(data.manifest)),
        json.dumps(rules, sort_keys=True),
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _build_learner(config: DictConfig, evaluation: Evaluate) -> tuple[MetricLearner, DataModule]:
    # Cheap parts first: a wrong loss should not wait for images to be listed.
    loss, adversary = instantiate(config.loss), instantiate(config.adversary)
    optimization = instantiate(config.optimizer)
    embedder = Embedder(instantiate(config.backbone), instantiate(config.fusion), **config.embedding)
    data = DataModule(
        instantiate(config.data.source),
        instantiate(config.protocol),
        instantiate(config.sampler),
        instantiate(config.transforms),
        seed=config.seed,
        **{key: config.data[key] for key in LOADING_KEYS},
    )
    learner = MetricLearner(
        embedder,
        loss(num_classes=data.num_classes, embedding_size=config.embedding.size),
        _build_adversary(adversary, embedder, config.embedding.size, data.num_classes),
        optimization,
        evaluation,
        channels_last=config.channels_last,
    )
    return learner, data


def _build_adversary(make: Any, embedder: Embedder, embedding_size: int, num_classes: int) -> Any:
    if make is None:
        return None
    sizes = {"fused": embedder.fusion.out_features, "embedding": embedding_size}
    return make(in_features=sizes[make.keywords["sees"]], num_classes=num_classes)


def _build_trainer(config: DictConfig, data: DataModule, folder: Path) -> Trainer:
    validates = len(data.split.validation) > 0
    checkpoint = Checkpoints(
        dirpath=folder / "checkpoints",
        filename="{epoch:03d}",
        monitor=MONITOR if validates else None,
        mode="max",
        save_last=True,
        save_on_exception=True,
        auto_insert_metric_name=False,
    )
    callbacks = [callback for callback in instantiate(config.callbacks).values() if callback is not None]
    loggers = list(instantiate(config.logger).values())
    limits = {} if validates else {"limit_val_batches": 0}
    return instantiate(
        config.trainer, callbacks=[*callbacks, checkpoint], logger=loggers, _convert_="all", **limits
    )


def execute(run: Run) -> RunRecord | None:
    """Train, measure the test classes once, write the record, draw; loggers are closed whatever happens.

    Returns:
        The record; none in the helping processes of a distributed run, which are done when training is.
    """
    status = "failed"
    try:
        run.data.manifest.save(run.folder / "manifest.csv")
        for logger in run.trainer.loggers:
            logger.log_hyperparams({**run.config, "choices": run.choices})
        if run.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        with run.timed("train"):
            run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=run.config["resume_from"])
        if not run.trainer.is_global_zero:
            status = "success"
            return None
        _restore_chosen(run)
        # Lightning leaves the learner on the CPU.
        run.learner.to(run.trainer.strategy.root_device)
        with run.timed("measure"):
            measured = measure(run.learner.embedder, run.data, run.evaluate, run.seed)
        record = _record(run, measured)
        record.save(run.folder / "record.json")
        _show(run, record, measured)
        status = "success"
    finally:
        finish(run.trainer.loggers, status)
    return record


def _restore_chosen(run: Run) -> None:
    """The weights of the epoch that the validation classes chose; without them, the last."""
    checkpoint = next(  # a user's callbacks may hold checkpoints of their own
        callback for callback in run.trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)
    )
    if checkpoint.monitor and checkpoint.best_model_path:
        state = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        run.learner.load_state_dict(state)
        log.info("Measuring the weights of %s.", checkpoint.best_model_path)


def _record(run: Run, measured: Measurement) -> RunRecord:
    callbacks: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((callback for callback in callbacks if isinstance(callback, Throughput)), Throughput())
    return RunRecord(
        choices=run.choices,
        seed=run.seed,
        config=run.config,
        split=run.data.split.fingerprint,
        manifest=run.data.manifest.content_hash,
        metrics=measured.metrics,
        seconds=dict(run.seconds),
        images_per_second=throughput.images_per_second,
    )


def _show(run: Run, record: RunRecord, measured: Measurement) -> None:
    """The table on the terminal; results and pictures to the loggers."""
    results = {
        f"{split}/{name}": value for split, values in record.metrics.items() for name, value in values.items()
    }
    console = Console()
    title = f"{run.choices['data']} · {run.choices['loss']} · {run.choices['ablation']} · seed {run.seed}"
    console.print(results_table(record.metrics, title=title))
    log_results(run.trainer.loggers, results, run.trainer.global_step)
    if run.config["pictures"]:
        for logger in run.trainer.loggers:
            logger.save()
        drawn = draw(run.folder / "pictures", run.learner, run.data, measured, run.seed)
        if (curves := _curves(run)) is not None:
            drawn["curves"] = curves
        log_pictures(run.trainer.loggers, drawn)
    console.print(
        f"Trained {record.seconds['train']:.0f} s at {record.images_per_second:.0f} images/s, "
        f"measured {record.seconds['measure']:.0f} s. Everything is in {run.folder}",
        soft_wrap=True,
    )


def _curves(run: Run) -> Path | None:
    """The training curves; none where this run had nothing left to train."""
    try:
        return training_curves(run.folder / "pictures" / "curves.png", run.folder / "metrics.csv")
    except (OSError, ValueError) as problem:
        log.warning("No training curves: %s", problem)
        return None
