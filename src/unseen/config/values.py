"""Values that a key cannot take, refused before anything heavy is loaded; constructors refuse the rest."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

NO_SOURCE = "data=collection: its images come from Python code, by unseen.dataset(…)."
"""Said of a choice of data that names no images."""


class UsageError(ValueError):
    """Something the user typed cannot work; the message names the key, the value and the choices."""


class Limits(NamedTuple):
    """Numbers from `minimum` to `maximum`."""

    minimum: float
    maximum: float = math.inf
    whole: bool = True
    nullable: bool = False

    def admit(self, value: Any) -> bool:
        """Whether a key may take this value."""
        if value is None:
            return self.nullable
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.minimum <= value <= self.maximum and math.isfinite(value)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        end = f"to {self.maximum:,.0f}" if math.isfinite(self.maximum) else "upwards"
        return f"{kind} from {self.minimum:,.0f} {end}{', or null' if self.nullable else ''}"


class OneOf(NamedTuple):
    """A few words."""

    words: tuple[str | bool | int, ...]

    def admit(self, value: Any) -> bool:
        """Whether a key may take this value."""
        return value in self.words

    def __str__(self) -> str:
        return " or ".join(dict.fromkeys(map(str, self.words)))


class ListOf(NamedTuple):
    """A list, possibly empty, or of so many."""

    each: Limits | OneOf
    length: int | None = None
    nullable: bool = False

    def admit(self, value: Any) -> bool:
        """Whether a key may take this value."""
        if value is None:
            return self.nullable
        if not isinstance(value, list) or len(value) != (self.length or len(value)):
            return False
        return all(self.each.admit(item) for item in value)

    def __str__(self) -> str:
        many = "a list" if self.length is None else f"a list of {self.length}"
        return f"{many}, each {self.each}{', or null' if self.nullable else ''}"


SEED = Limits(0, 2**32 - 1)


# Key, with * for any name → what it takes.
VALUES: dict[str, Limits | OneOf | ListOf] = {
    "seed": SEED,
    "protocol.seed": SEED,
    "data.split_seed": SEED,
    "data.image_size": Limits(8),  # below, a network sees its own padding
    "data.cache_size": Limits(8),
    "backbone.mean": ListOf(Limits(0, whole=False), nullable=True),
    "backbone.std": ListOf(Limits(0, whole=False), nullable=True),
    "optimizer.algorithm.weight_decay": Limits(0, whole=False),
    "optimizer.learning_rates.*": Limits(0, whole=False),
    "optimizer.l2_sp": Limits(0, whole=False),
    "trainer.max_epochs": Limits(-1, nullable=True),
    "trainer.gradient_clip_val": Limits(0, whole=False, nullable=True),
    "trainer.log_every_n_steps": Limits(0),
    # Not "-true" of half width: losses and readout compute in float32.
    "trainer.precision": OneOf(("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", 32, 16)),
    "threads": Limits(1, nullable=True),
    "save_every": Limits(0, whole=False, nullable=True),
    "check_from": Limits(0, nullable=True),
    "tuning_trials": Limits(0),
    "trainable.alpha": Limits(0, whole=False),
    "speed.seconds": Limits(0, whole=False),
    "speed.precision": ListOf(OneOf(("32-true", "bf16-mixed", "16-mixed"))),
    "speed.channels_last": ListOf(OneOf((True, False))),
    "speed.compile": ListOf(OneOf((True, False))),
    "adversary.sees": OneOf(("fused", "embedding")),
    "regularizer.into": OneOf(("embedding", "fused")),
    "embedding.readout": OneOf(("features", "projection")),
    # Scatter matrices are of this size squared.
    "embedding.size": Limits(1, 2**14),
    "embedding.pretrained_share": Limits(0, 1, whole=False),
    "embedding.whitening": Limits(0, whole=False, nullable=True),
    "evaluation.draws": Limits(1),
    "evaluation.resamples": Limits(0),
    "metrics.*_at": ListOf(Limits(1)),
    "metrics.similarity": OneOf(("cosine", "euclidean", "dot")),
    "metrics.without_relevant": OneOf(("skip", "zero")),
    "metrics.precision": OneOf(("auto", "float64", "float32", "bfloat16", "int8")),
    "metrics.memory_budget": Limits(1),
    "metrics.neighbours": Limits(0),
    # Of commands that have no groups for them.
    "batch_size": Limits(1),
    "k": Limits(1),
    "recall": Limits(0, 1, whole=False),
    "crop": ListOf(Limits(0), length=4, nullable=True),
    "duplicate": Limits(-1, 1, whole=False, nullable=True),
    "copies": Limits(0, 1, whole=False),
    "tables": OneOf(("csv", "parquet")),
}
FOREIGN = (
    "trainer.*", "callbacks.*", "logger.*", "loss.*", "miner.*", "optimizer.algorithm.*",
    "launcher.*", "runner.*",
)  # fmt: skip
"""Keys that constructors of other libraries take: the type of our default does not bind them."""


def check_value(key: str, value: Any, typed: str) -> None:
    """Refuse a value that the key cannot take; an interpolation (`${…}`) is not known yet and passes.

    Args:
        key: dotted.
        value: as parsed.
        typed: what the user wrote, for the message.

    Raises:
        UsageError: naming what the key takes.
    """
    if str(value).startswith("${"):
        return
    wanted = limits_of(key)
    if wanted is not None and not wanted.admit(value):
        raise UsageError(f"{typed}: '{key}' takes {wanted}, got {'null' if value is None else repr(value)}.")


def check_given(key: str, value: Any, typed: str) -> None:
    """Refuse a value that is typed as an empty text; a file may mean it.

    Raises:
        UsageError: naming the key.
    """
    if value == "":
        raise UsageError(f"{typed}: '{key}' is empty, as if a shell variable were not set. Give it a value.")


def limits_of(key: str) -> Limits | OneOf | ListOf | None:
    """What a key takes, if it is written down."""
    return next((wanted for pattern, wanted in VALUES.items() if fnmatch.fnmatchcase(key, pattern)), None)


def check_type(key: str, value: Any, default: Any, typed: str, whole: bool) -> None:
    """Refuse a value of another type than the default's, of a key for which nothing else is written down.

    Args:
        key: dotted.
        value: as parsed; an interpolation (`${…}`) is not known yet and passes.
        default: what the key has without it; what it may be is open where it is null or has parts.
        typed: what the user wrote, for the message.
        whole: a default without fraction asks for another one without.

    Raises:
        UsageError: naming what the key takes.
    """
    is_open = default is None or isinstance(default, Mapping) or limits_of(key) is not None
    if is_open or str(value).startswith("${"):
        return
    is_foreign = any(fnmatch.fnmatchcase(key, pattern) for pattern in FOREIGN)
    whole = whole and not is_foreign
    if value is None:
        if not is_foreign:
            raise UsageError(f"{typed}: '{key}' takes {_kind(default, whole)}, got null.")
        return
    if isinstance(default, list):
        if not isinstance(value, list):
            raise UsageError(f"{typed}: '{key}' takes a list, got {value!r}. Wanted '{key}=[{value}]'.")
        return
    if not isinstance(default, bool | int | float):
        return
    wanted = int if isinstance(default, bool) or (whole and isinstance(default, int)) else int | float
    fits = isinstance(value, bool) == isinstance(default, bool) and isinstance(value, wanted)
    if not fits:
        raise UsageError(f"{typed}: '{key}' takes {_kind(default, whole)}, got {value!r}.")


def _kind(default: Any, whole: bool) -> str:
    if isinstance(default, bool):
        return f"true or false (default {default})"
    if isinstance(default, int) and whole:
        return f"a whole number (default {default})"
    if isinstance(default, int | float):
        return f"a number (default {default})"
    return "a list" if isinstance(default, list) else f"a value (default {default})"


def check_devices(trainer: DictConfig) -> None:
    """Refuse an accelerator that this machine lacks, and more devices than it has.

    Args:
        trainer: with `accelerator` and `devices`.

    Raises:
        UsageError: naming what there is.
    """
    name, devices = trainer.accelerator, trainer.devices
    # PyTorch takes seconds to load, and is not asked where its answer changes nothing.
    joins_statistics = bool(trainer.get("sync_batchnorm"))
    matters = name != "cpu" and (name != "auto" or devices != 1 or joins_statistics)
    gpus = _gpus(name) if matters else 0
    if joins_statistics and not gpus:
        raise UsageError(
            "trainer.sync_batchnorm=true: PyTorch joins the statistics of processes on GPUs alone, and this "
            "run has none. Use embedding.frozen_batch_norm=true, whose statistics stay, or leave it out."
        )
    if not isinstance(devices, int):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = gpus or cores
    if devices > there:
        kind = "GPU(s)" if gpus else "CPU core(s), of which each process needs one"
        raise UsageError(f"trainer.devices={devices}: this machine has {there} {kind}. Use at most {there}.")


def _gpus(accelerator: str) -> int:
    """How many this machine has.

    Raises:
        UsageError: the accelerator that was asked for is not there.
    """
    import torch

    gpus, has_mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    found = {"gpu": gpus or has_mps, "cuda": gpus, "mps": has_mps}
    if not found.get(accelerator, True):
        raise UsageError(
            f"trainer.accelerator={accelerator}: PyTorch {torch.__version__} finds none on this machine. "
            "Use trainer.accelerator=cpu, or a PyTorch that matches the driver (see nvidia-smi)."
        )
    return gpus or int(has_mps)


def texts(where: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """`+where.label=owl` or `+where.label=[1,2]` as it was typed → texts."""
    return {
        str(name): list(map(str, wanted)) if isinstance(wanted, list | ListConfig) else str(wanted)
        for name, wanted in where.items()
    }
