"""Measures a finished run again: with another readout, by other metrics, on other images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from lightning import seed_everything
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from rich.console import Console

from unseen.config.build import build_data
from unseen.config.command_line import building, check_overrides, check_single, config_of_run
from unseen.config.export import config_of, trained_embedder, weights_of
from unseen.config.identity import plain
from unseen.config.own import divided, key_of_word, own_config
from unseen.config.targets import instantiate
from unseen.config.values import UsageError
from unseen.data.manifest import Manifest
from unseen.data.module import DataModule
from unseen.data.split import Rows
from unseen.deploy.model import default_device
from unseen.evaluation.measure import measure, measure_untrained, measure_validation
from unseen.evaluation.probe import measure_probe
from unseen.evaluation.readout import fit_readout
from unseen.nn.embedder import Embedder
from unseen.report.runs import Run, load_runs
from unseen.retrieval import evaluate
from unseen.tracking.record import RunRecord, save_queries
from unseen.tracking.table import results_table
from unseen.training.learner import memory_layout
from unseen.workflow.queries import query_columns
from unseen.workflow.run import EvaluationSettings, with_probe, with_scores

SECTIONS = ("data", "protocol", "metrics", "evaluation")
"""Of the config that a run is measured by; of `embedding`, the readout is."""
READOUT = ("embedding.readout", "embedding.whitening", "embedding.pretrained_share")
CHOSEN_ANEW = ("data", "protocol")
"""Of these another choice may be typed, which the keys of the run's own choice do not fit …"""
SHARED = (
    "data.image_size", "data.workers", "data.evaluation_batch_size", "data.on_error",
    "data.cache", "data.cache_size", "data.cache_dir", "protocol.seed", "protocol.held_out_fraction",
)  # fmt: skip
"""… but for these, which every choice has and which say nothing of the images."""
BROUGHT = ("backbone", "transforms", "optimizer", "trainer")
"""Groups that a data set may choose; the keys of a run fit its own choices."""
WEIGHTS = "backbone.weights"
"""Of the untrained network, which is measured or deployed too: where the file lies now."""


def measure_again(typed: Sequence[str], config_dir: str | None = None) -> int:
    """Measure each run, unless that was done before; its weights stay as they are.

    Args:
        typed: `runs=`, `output=` (see `conf/measure.yaml`), and overrides of what a run is measured by.
        config_dir: a user's own groups.

    Returns:
        0, the status to leave with.

    Raises:
        UsageError: a key changes what was trained, a run is not whole, or data cannot be read.
    """
    own, changes = divided(typed, "measure")
    settings = own_config(own, "measure", config_dir)
    check_changes(changes, config_dir)
    with building():
        folders = list(settings.runs) if isinstance(settings.runs, ListConfig) else [settings.runs]
        runs = load_runs([str(Path(folder).expanduser()) for folder in folders]).finished
    if not runs:
        raise UsageError(f"runs={settings.runs}: there is no finished run in it. Name a folder of runs.")
    console = Console()
    for run in runs:
        folder = _folder(Path(settings.output).expanduser(), run, changes)
        if (folder / "record.json").is_file():
            console.print(f"{run.name}: measured before, in {folder}", soft_wrap=True)
            continue
        with building():
            record = _measured(run, changes, folder, config_dir)
        title = f"{run.name}: {' '.join(changes) or 'again'}"
        console.print(
            results_table(record.metrics, spread=record.spread, intervals=record.intervals, title=title)
        )
        console.print(f"Written to {folder}", soft_wrap=True)
    return 0


def check_changes(changes: Sequence[str], config_dir: str | None) -> None:
    """Refuse what cannot be another in a network that is trained.

    Raises:
        UsageError: naming the override.
    """
    check_single(changes)
    for word in changes:
        key = key_of_word(word)
        if key == "data.image_size":
            raise UsageError(
                f"{word}: the network sees images of the size that it was trained with, whatever they are "
                "prepared from. Leave it out."
            )
        if key.partition(".")[0] not in SECTIONS and key not in (*READOUT, WEIGHTS):
            check_overrides("train", [word], config_dir)  # what is mistyped changes nothing
            raise UsageError(
                f"{word}: that changes what was trained, and this measures what is. Keys of "
                f"{', '.join(SECTIONS)} can be others, and {', '.join((*READOUT, WEIGHTS))}; for the rest: "
                "unseen train."
            )


def _folder(output: Path, run: Run, changes: Sequence[str]) -> Path:
    """Of the new record: a run that is measured in the same way again has the same."""
    facts = "\n".join([str(run.folder.resolve()), run.record.finished, *sorted(changes)])
    return output / f"{run.name}_{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def _measured(run: Run, changes: Sequence[str], folder: Path, config_dir: str | None) -> RunRecord:
    record = run.record
    before = config_of(record)
    config = _changed(before, record.overrides, changes, config_dir)
    data = build_data(config)
    _check_untrained(run, before, data, test=config.evaluation.test)
    embedder = _embedder(run.folder, record, before, config, data)
    settings = EvaluationSettings(seed=config.protocol.seed, **plain(config.evaluation))
    by = functools.partial(evaluate, **plain(config.metrics))
    record = dataclasses.replace(
        record,
        config=plain(config),
        choices=record.choices | _groups(changes),
        overrides=[*_kept(record.overrides, changes), *changes],
        split=data.split.fingerprint,
        manifest=data.manifest.content_hash,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not settings.test:
        metrics = {"validation": measure_validation(embedder, data, by)}
        record = dataclasses.replace(
            record, metrics=metrics, spread={}, intervals={}, participation={}, per_class={}
        )
        record.save(folder / "record.json")
        return record
    seed_everything(record.seed, workers=True, verbose=False)  # a backbone that started from nothing
    backbone = instantiate(config.backbone).to(memory_format=memory_layout(config.channels_last))
    backbone = backbone.to(default_device())
    untrained = measure_untrained(backbone, data, by, **settings.of_galleries)
    measured = measure(embedder, data, by, **settings.of_galleries)
    record = with_scores(record, data.manifest, measured, untrained)
    record = with_probe(record, measure_probe(embedder, data, **settings.of_probe))
    folder.mkdir(parents=True, exist_ok=True)
    save_queries(folder / "queries.npz", query_columns(measured))
    record.save(folder / "record.json")
    return record


def _changed(
    before: DictConfig, overrides: Sequence[str], changes: Sequence[str], config_dir: str | None
) -> DictConfig:
    """The config of the run with those sections that are typed as they would be in training."""
    if not changes:
        return before
    kept = _kept(overrides, changes)
    brought = set(BROUGHT) - set(map(key_of_word, kept))
    chosen = [f"{group}={before.choices[group]}" for group in sorted(brought)]
    typed = [*chosen, *kept, *changes]
    check_overrides("train", typed, config_dir)
    composed = config_of_run("train", typed, config_dir)
    config = before.copy()
    with open_dict(config):
        for section in {key_of_word(word).partition(".")[0] for word in changes} & set(SECTIONS):
            config[section] = composed[section]
        config.data.image_size = before.data.image_size
        for key in (*READOUT, WEIGHTS):
            if key in map(key_of_word, changes):
                OmegaConf.update(config, key, OmegaConf.select(composed, key))
    return config


def _kept(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The run's overrides without those of a section that is chosen anew."""
    anew = {key_of_word(word) for word in changes} & set(CHOSEN_ANEW)
    keys = {word: key_of_word(word) for word in overrides}
    return [word for word, key in keys.items() if key in SHARED or key.partition(".")[0] not in anew]


def _check_untrained(run: Run, before: DictConfig, data: DataModule, test: bool) -> None:
    """Refuse to call unseen, or kept out, what the network was trained on, by the manifest that the run left.

    Raises:
        UsageError: naming the part, an image, and the remedy.
    """
    if not (run.folder / "manifest.csv").is_file():
        return
    manifest = Manifest.load(run.folder / "manifest.csv")
    # What has the very same paths is the same data, wherever it lies now.
    rooted = set(manifest.paths) != set(data.manifest.paths)
    boxed = manifest.boxes is not None and data.manifest.boxes is not None
    trained = set(_images(manifest, instantiate(before.protocol)(manifest).train, rooted, boxed))
    split = data.split
    parts = {"test": np.union1d(split.query, split.gallery), "held-out": split.held_out}
    for name, rows in {**(parts if test else {}), "validation": split.validation}.items():
        images = _images(data.manifest, rows, rooted, boxed)
        if both := [row for row, image in zip(rows, images, strict=True) if image in trained]:
            raise UsageError(
                f"{run.name}: it was trained on {len(both)} of the {len(rows)} {name} images of this split, "
                f"such as '{data.manifest.paths[both[0]]}'. Keep the run's own split (leave out what changes "
                "it in data and protocol), or measure other images."
            )


def _images(manifest: Manifest, rows: Rows, rooted: bool, boxed: bool) -> list[tuple[Any, ...]]:
    """What tells images apart: the path, whole or below the root, and the box where there are any."""
    root = str(manifest.root.resolve()) if rooted else ""
    paths = [os.path.join(root, manifest.paths[row]) for row in rows]
    if not boxed or manifest.boxes is None:
        return [(path,) for path in paths]
    return [(path, *box) for path, box in zip(paths, manifest.boxes[rows].tolist(), strict=True)]


def _embedder(
    folder: Path, record: RunRecord, before: DictConfig, config: DictConfig, data: DataModule
) -> Embedder:
    """As the run measured it; a readout that is another is fitted to the run's own training images."""
    changes = before.embedding != config.embedding
    embedder = trained_embedder(config, weights_of(folder, record), but_readout=changes)
    embedder = embedder.to(memory_format=memory_layout(config.channels_last)).to(default_device())
    if changes:
        fit_readout(embedder, data if before.data == config.data else build_data(before))
    return embedder


def _groups(changes: Sequence[str]) -> dict[str, str]:
    """Choices among the overrides: those of whole sections."""
    words: dict[str, Any] = {key_of_word(word): word.partition("=")[2] for word in changes}
    return {key: value for key, value in words.items() if key in SECTIONS}
