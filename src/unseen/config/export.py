"""From the folder of a finished run to a bundle, and the images that a file made of it is checked on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from unseen.config.build import build_data, build_embedder
from unseen.config.targets import instantiate
from unseen.data.cache import Selected
from unseen.data.images import Pixels, read_image
from unseen.data.module import DataModule
from unseen.deploy.bundle import load, save
from unseen.deploy.exchange import noise
from unseen.deploy.model import Model, images_of
from unseen.deploy.quantization import Labelled
from unseen.deploy.verification import calibrate
from unseen.evaluation.embed import embed
from unseen.nn.embedder import PRETRAINED, READOUT, Embedder
from unseen.nn.lora import merge
from unseen.tracking.record import RunRecord

CHECKED = 64
"""Real images that the bundle must embed as the run does."""
TOLERANCE = 1e-5
JUDGED = 5000
"""Images that a file in 8 bits is judged by."""


def export(run: Path, output: Path | None = None) -> Path:
    """Write the bundle of a run.

    Args:
        run: its folder, with `record.json` and `checkpoints/`.
        output: of the bundle; `<run>/bundle` by default.

    Raises:
        ValueError: the run has not succeeded, its weights are gone, a part is not of this package, or the
            bundle embeds images of the run otherwise than the run does; nothing is left behind then.
    """
    run = run.expanduser().resolve()
    record = record_of(run)
    config = config_of(record)
    embedder = trained_embedder(config, weights_of(run, record))
    data = build_data(config)
    facts = {**facts_of(record), "thresholds": thresholds_of(embedder, data)}
    model = Model(embedder, data.transforms.evaluation, facts)
    folder = save(model, parts_of(record), output or run / "bundle")
    try:
        _check(folder, embedder, data)
    except BaseException:  # Ctrl-C too: what was not checked must not be there
        shutil.rmtree(folder)
        raise
    return folder


def _check(folder: Path, embedder: Embedder, data: DataModule) -> None:
    """Refuse a bundle that embeds real images of the run otherwise than the run does.

    Raises:
        ValueError: it does.
    """
    rows = data.split.query[:CHECKED]
    wanted = embed(embedder, data.loader(rows)).embeddings
    found = load(folder).embed([data.images[int(row)] for row in rows])
    off = float((found - wanted).abs().max())
    if not off <= TOLERANCE:
        raise ValueError(
            f"'{folder}' would embed images of the run otherwise than the run does (by up to {off:.2g}): the "
            "images, or the version of a library, have changed since. Train again."
        )


def thresholds_of(embedder: Embedder, data: DataModule) -> dict[str, Any] | None:
    """Calibrated on held-out training classes; none where there are none, as test classes must not choose."""
    rows = data.split.validation
    if len(rows) == 0 or not embedder.normalize:
        return None
    found = embed(embedder, data.loader(rows))
    try:
        return calibrate(found.embeddings.cpu().numpy(), found.labels.numpy())
    except ValueError:
        return None


def images_to_check(model: Model, run: Path | None, images: Path | None) -> tuple[list[Pixels], str]:
    """What an exported file of a bundle must embed as the bundle does, and what these images are, in words.

    Args:
        model: of the bundle.
        run: its query images are taken, where the bundle was just made of a run.
        images: else a folder of images; else they are random.

    Raises:
        ValueError: the folder has no image, or one cannot be read.
    """
    if run is not None:
        data = build_data(config_of(record_of(run.expanduser().resolve())))
        rows = data.split.query[:CHECKED]
        return [data.images[int(row)] for row in rows], f"{len(rows)} query images of the run"
    if images is None:
        return noise(model, CHECKED), f"{CHECKED} random images (images=<folder> takes real ones)"
    found = images_of(images)[:CHECKED]
    if not found:
        raise ValueError(f"images={images}: there is no image in it. Name another folder, or leave it out.")
    return list(map(read_image, found)), f"{len(found)} images of '{images}'"


def quantization_images(run: Path, count: int) -> dict[str, Any]:
    """What a file in 8 bits is calibrated on, and what it is judged by.

    Args:
        run: folder of a finished run.
        count: of the training images to calibrate on, drawn at random.

    Returns:
        `calibration` and `judged`, as `to_int8_onnx` takes them. Judged by the classes that the protocol
        holds out, where it does; else by test classes, as nothing is chosen by them here. Whole classes are
        drawn at random where there are more than `JUDGED` images.

    Raises:
        ValueError: there are no training images to calibrate on.
    """
    if count < 1:
        raise ValueError(f"format.calibration={count}: wanted at least 1 training image.")
    data = build_data(config_of(record_of(run.expanduser().resolve())))
    split, generator = data.split, np.random.default_rng(0)
    training = np.sort(generator.permutation(split.train)[:count])
    rows, what = np.union1d(split.query, split.gallery), "test classes"
    if len(split.validation):
        rows, what = split.validation, "training classes that were held out"
    labels = data.manifest.labels
    classes, counts = np.unique(labels[rows], return_counts=True)
    order = generator.permutation(len(classes))
    drawn = classes[order[: max(2, int((np.cumsum(counts[order]) <= JUDGED).sum()))]]
    rows = rows[np.isin(labels[rows], drawn)]
    return {
        "calibration": Selected(data.images, training),
        "judged": Labelled(
            Selected(data.images, rows), labels[rows], f"{len(rows):,} images of {len(drawn)} {what}"
        ),
    }


def parts_of(record: RunRecord) -> dict[str, Any]:
    """How the run's network is built and its images are prepared, as plain data."""
    config = record.config
    parts = {name: config[name] for name in ("backbone", "fusion", "embedding")}
    return {**parts, "preparation": config["transforms"]["evaluation"]}


def facts_of(record: RunRecord) -> dict[str, Any]:
    """What a bundle says of the run, as plain data without NaN."""
    finite = {
        split: {name: value for name, value in values.items() if math.isfinite(value)}
        for split, values in record.metrics.items()
    }
    return {
        **{group: record.choices.get(group) for group in ("data", "loss", "ablation", "fusion", "adversary")},
        "backbone": record.config["backbone"]["model"],
        "seed": record.seed,
        "metrics": finite,
        "intervals": {split: {k: list(v) for k, v in one.items()} for split, one in record.intervals.items()},
        "split": record.split,
        "manifest": record.manifest,
        "job_key": record.job_key,
        "initial_weights": record.weights,
        "finished": record.finished,
    }


def trained_embedder(
    config: DictConfig, weights: dict[str, torch.Tensor], but_readout: bool = False
) -> Embedder:
    """The network of a run with the weights of its checkpoint, in evaluation mode.

    Args:
        config: of the run.
        weights: of the embedder.
        but_readout: leave the readout as it is built; it is to be fitted anew. A pretrained network beside it
            that the checkpoint has not is the one that training started from.

    Raises:
        ValueError: the weights do not fit the config, or nothing pretrained is left of the run.
    """
    bare = config.copy()
    if not (but_readout and _wants_pretrained(config, weights)):
        bare.backbone.weights = "none"  # all come from the checkpoint
    embedder = build_embedder(bare)
    if "trainable" in config:
        instantiate(config.trainable)(embedder.backbone)  # low-rank additions, which are merged once loaded
    own = embedder.state_dict()
    known = {
        name: value
        for name, value in weights.items()
        if not (
            but_readout and (name.startswith(READOUT) or (name.startswith(PRETRAINED) and name not in own))
        )
    }
    missing, unexpected = embedder.load_state_dict(known, strict=False)
    if wrong := [*unexpected, *(name for name in missing if not (but_readout and _is_readouts(name)))]:
        raise ValueError(f"The weights of the checkpoint do not fit the config of its run: {wrong[0]}.")
    merge(embedder.backbone)
    return embedder.requires_grad_(False).eval()


def _is_readouts(name: str) -> bool:
    return name.startswith((READOUT, PRETRAINED))


def _wants_pretrained(config: DictConfig, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the pretrained network is to be deployed, and is not among the weights."""
    share = config.embedding.get("pretrained_share")
    if not share or any(name.startswith(PRETRAINED) for name in weights):
        return False
    if config.backbone.weights == "none":
        raise ValueError(
            f"embedding.pretrained_share={share}: the run started from random weights and kept no copy of "
            "them. Set embedding.pretrained_share=0, or train with it."
        )
    return True


def record_of(run: Path) -> RunRecord:
    """Of a finished run.

    Raises:
        ValueError: there is none in this folder, or the run has not succeeded.
    """
    path = run / "record.json"
    if not path.is_file():
        raise ValueError(f"run={run}: there is no record.json in it. Name the folder of a finished run.")
    record = RunRecord.load(path)
    if record.status != "success":
        raise ValueError(f"run={run}: this run ended as '{record.status}'. Run it again, or go on with it.")
    return record


def config_of(record: RunRecord) -> DictConfig:
    """Of a run, with what runs of before it existed did not say."""
    config = DictConfig(record.config)
    config.backbone.setdefault("frozen", False)
    return config


def weights_of(run: Path, record: RunRecord) -> dict[str, torch.Tensor]:
    """Those that the run measured: of the epoch that was chosen, else the last."""
    chosen = run / "checkpoints" / f"{(record.chosen_epoch or 0) - 1:03d}.ckpt"
    path = chosen if chosen.is_file() else run / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise ValueError(f"run={run}: there is no checkpoint in it ({path.name}). Train again.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state, epochs = checkpoint["state_dict"], int(checkpoint.get("epoch", -1)) + 1
    except Exception as error:  # unpickling raises whatever the bytes suggest
        raise ValueError(
            f"run={run}: {path.name} is not a checkpoint of a run, or one that was cut short. Train again."
        ) from error
    if record.chosen_epoch and epochs != record.chosen_epoch:
        raise ValueError(
            f"run={run}: the weights that it measured, of epoch {record.chosen_epoch}, are gone: {path.name} "
            f"is of epoch {epochs}. Put {chosen.name} back into {chosen.parent}, or train again."
        )
    prefix = "embedder."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
