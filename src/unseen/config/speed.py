"""The fastest settings of this machine for a network and its images: measured once, remembered in a file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unseen.config.identity import plain
from unseen.data.module import DataModule
from unseen.files import exclusive_lock, replacing
from unseen.nn.allocator import keep_freed_memory
from unseen.nn.embedder import Embedder
from unseen.tracking.environment import Environment
from unseen.tracking.table import duration
from unseen.training.speed import Measured, Network, Settings, fastest

DEPENDS_ON = (
    "backbone", "trainable", "fusion", "embedding", "transforms", "sampler", "data", "speed",
    "trainer.precision", "trainer.accelerator", "channels_last", "compile", "threads",
)  # fmt: skip
"""Parts of the config that make a step and its batch fast or slow."""
Parts = Callable[[], tuple[Embedder, DataModule]]


def with_fastest(config: DictConfig, parts: Parts, remembers: bool) -> DictConfig:
    """The config with the fastest settings in it; one line on the terminal says which.

    Args:
        config: `speed` has what is tried.
        parts: makes the network and the images that are timed; called only where nothing is remembered.
        remembers: whether the config names all of both, so that they can be known again.

    Raises:
        ValueError: there is no backbone to time, or several processes would measure at once.
    """
    if config.backbone.frozen:
        raise ValueError(
            "speed=measured with backbone.frozen=true: training reads stored feature maps, and there is no "
            "backbone to time. Use speed=given."
        )
    if not remembers:
        return _with_chosen(config, *_measured(config, parts))
    file = _file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process measures what is fastest ({file.name}): waiting."
    with exclusive_lock(file.with_suffix(".lock"), lambda: print(waiting, flush=True)):
        if remembered := _remembered(file):
            return _with_chosen(config, remembered, f"remembered in {file}")
        measured, how = _measured(config, parts)
        _remember(file, measured)
    return _with_chosen(config, measured, how)


def _measured(config: DictConfig, parts: Parts) -> tuple[Measured, str]:
    if max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1:
        raise ValueError(
            "speed=measured: several processes would measure at once, and disturb each other. Train in one "
            "first, with trainer.max_epochs=0 and the same settings: what it finds is remembered."
        )
    print("Measuring what is fastest here ...", flush=True)
    started = time.monotonic()
    embedder, data = parts()
    keep_freed_memory()
    given = _given(config, data)
    speed = config.speed
    networks = [Network(*choice) for choice in product(speed.precision, speed.channels_last, speed.compile)]
    accelerator = config.trainer.accelerator
    measured = fastest(embedder, data, given, networks, accelerator=accelerator, seconds=speed.seconds)
    return measured, f"measured in {duration(time.monotonic() - started)}"


def _given(config: DictConfig, data: DataModule) -> Settings:
    network = Network(str(config.trainer.precision), config.channels_last, config.compile)
    return Settings(network, data.workers, config.threads or torch.get_num_threads())


def _with_chosen(config: DictConfig, measured: Measured, how: str) -> DictConfig:
    """The config with what was chosen, which is said in the words in which it can be typed."""
    chosen = measured.chosen
    values = {
        "trainer.precision": chosen.network.precision,
        "channels_last": chosen.network.channels_last,
        "compile": chosen.network.compile,
        "data.workers": chosen.workers,
        "threads": chosen.threads,
    }
    typed = " ".join(f"{key}={str(value).lower()}" for key, value in values.items())
    print(
        f"Fastest here: {typed} ({measured.images_per_second:.0f} images/s; as given "
        f"{measured.as_given:.0f}; {how}).",
        flush=True,
    )
    config = config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config


def _file(config: DictConfig) -> Path:
    """One for each machine, network and way of preparing images."""
    content = plain(config)
    parts = {key: _at(content, key) for key in DEPENDS_ON}
    parts["data"] = {key: value for key, value in parts["data"].items() if key != "cache_dir"}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    here = Environment.here(gpus)
    machine = [here.processor, here.cores, here.accelerators, here.versions["torch"], torch.get_num_threads()]
    digest = hashlib.sha256(json.dumps([machine, parts], sort_keys=True, default=str).encode()).hexdigest()
    return Path(config.data.cache_dir).expanduser() / "speed" / f"{digest[:16]}.json"


def _at(content: Any, key: str) -> Any:
    for name in key.split("."):
        content = content[name]
    return content


def _remembered(file: Path) -> Measured | None:
    """None where nothing is, or what is there cannot be read: it is then measured again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        chosen = content.pop("chosen")
        return Measured(Settings(Network(**chosen.pop("network")), **chosen), **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _remember(file: Path, measured: Measured) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(measured), indent=1), encoding="utf-8")
