"""What a run keeps of its weights, and whether another run can go on from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

log = logging.getLogger(__name__)


class Checkpoints(ModelCheckpoint):
    """Lightning's callback, which also remembers the best epoch when a run resumes in another folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best_model_path"]
        if best and not Path(best).is_file():
            log.warning("The best epoch so far, %s, is gone: the best is sought from here on.", best)
            return
        ours = {"dirpath": self.dirpath, "last_model_path": self.last_model_path}
        super().load_state_dict({**state_dict, **ours})


def check_resumable(learner: nn.Module, path: Path) -> None:
    """Refuse a checkpoint of another network, loss or adversary.

    Args:
        learner: what is to go on.
        path: of the checkpoint.

    Raises:
        ValueError: there is no such file, it is no checkpoint, or it holds other weights.
    """
    if not path.is_file():
        raise ValueError(f"resume_from={path}: no such file. Give a checkpoint of a run (.ckpt).")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
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
