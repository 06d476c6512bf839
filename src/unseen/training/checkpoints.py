"""What a run keeps of its weights, of which run they are, and whether another run can go on from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

log = logging.getLogger(__name__)


IDENTITY = "unseen"
"""Key of a checkpoint under which it says of which run it is."""


class Checkpoints(ModelCheckpoint):
    """Lightning's callback, which also says of which run a checkpoint is and how long it was trained.

    It remembers the best epoch when a run resumes in another folder.

    Args:
        identity: `split` and `manifest` (hashes) and `config` (dotted key → value), plain data.
        arguments: Lightning's.
    """

    def __init__(self, identity: Mapping[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.identity = dict(identity or {})
        self.earlier_seconds = 0.0
        self._started: float | None = None

    @property
    def train_seconds(self) -> float:
        """Of training so far, that of earlier runs which this one resumed included."""
        return self.earlier_seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write down which run this is."""
        checkpoint[IDENTITY] = {**self.identity, "train_seconds": self.train_seconds}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting."""
        self.earlier_seconds = float(checkpoint.get(IDENTITY, {}).get("train_seconds", 0.0))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best_model_path"]
        if best and not Path(best).is_file():
            log.warning("The best epoch so far, %s, is gone: the best is sought from here on.", best)
            return
        ours = {"dirpath": self.dirpath, "last_model_path": self.last_model_path}
        super().load_state_dict({**state_dict, **ours})


def check_resumable(learner: nn.Module, path: Path, identity: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint of another network, loss or adversary, of another split, or of other settings.

    Args:
        learner: what is to go on.
        path: of the checkpoint.
        identity: of the run that is to go on; keys of the trainer may differ (more epochs).

    Raises:
        ValueError: there is no such file, it is no checkpoint, it holds other weights, or it is of a run with
            another split, manifest or config, whose keys are named.
    """
    if not path.is_file():
        raise ValueError(f"resume_from={path}: no such file. Give a checkpoint of a run (.ckpt).")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
    except Exception as error:  # unpickling raises whatever the bytes suggest
        raise ValueError(f"resume_from={path}: not a checkpoint of a run ({error}).") from error
    own = {name: value.shape for name, value in learner.state_dict().items()}
    saved = {name: value.shape for name, value in state.items()}
    differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if differing:
        parts = sorted({".".join(name.split(".")[:2]) for name in differing})
        raise ValueError(
            f"resume_from={path}: the checkpoint is of another configuration; {len(differing)} weights "
            f"differ, in {', '.join(parts)}. Give the overrides of the run that wrote it."
        )
    if identity is not None and IDENTITY in checkpoint:
        _check_identity(path, checkpoint[IDENTITY], identity)
    elif identity is not None:
        log.warning("%s does not say of which split it is: make sure that it is of this one.", path)


def _check_identity(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    remedy = "Give the overrides of the run that wrote it, or start anew without resume_from."
    before, now = saved.get("config", {}), own["config"]
    differing = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith("trainer.")
    ]
    # Before the split, which such keys change: what was typed says more than a hash.
    if differing:
        raise ValueError(
            f"resume_from={path}: the checkpoint is of a run with other settings: {'; '.join(differing)}. "
            f"{remedy}"
        )
    for name, what in (("manifest", "other images"), ("split", "another split")):
        if saved.get(name) != own[name]:
            raise ValueError(
                f"resume_from={path}: the checkpoint was trained on {what} ({name} "
                f"{str(saved.get(name))[:12]}…, here {str(own[name])[:12]}…), so what it was trained on may "
                f"validate or test here. {remedy}"
            )
