"""What a run keeps of its weights, of which run they are, and whether another run can go on from them."""

from __future__ import annotations

import io
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from unseen.files import replacing
from unseen.tracking.run_folder import CHECKPOINTS, FINISHED, LAST, checkpoints, newest_first
from unseen.training.divergence import DivergedError
from unseen.training.learner import MetricLearner
from unseen.training.stopping import StoppedWithinStepError

log = logging.getLogger(__name__)


IDENTITY = "unseen"
"""Key of a checkpoint under which it says of which run it is."""

UNTRUSTED = (DivergedError, StoppedWithinStepError)
"""What ends a run whose weights are no state to go on from."""


class WholeFiles(TorchCheckpointIO):
    """A checkpoint is written beside its place and moved there when it is whole and on the disk.

    Lightning writes it into the system's temporary folder: from another file system the move is a copy, and
    whoever is killed in the middle of it leaves half a checkpoint in place of a good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See Lightning's."""
        # Through memory, as torch hides what the system says of a full disk.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())


class Checkpoints(ModelCheckpoint):
    """Lightning's callback, which also says of which run a checkpoint is and how long it was trained.

    `last.ckpt` is written in mid epoch too, so that a run that is killed loses minutes. A run goes on from it
    as if it had never stopped: the position in the epoch is in it, and random numbers follow from that
    (`SeedsSteps`). (From one that an exception wrote within a step, of one batch or of several, it repeats
    that step; batch norm and memories have then seen its batches twice.) A run that resumes in another folder
    takes the best epoch along. A file is whole or not there.

    Args:
        identity: `split` and `manifest` (hashes) and `config` (dotted key → value), plain data.
        save_every: seconds between two checkpoints within an epoch; none writes them at its end alone.
        arguments: Lightning's.
    """

    def __init__(
        self, identity: Mapping[str, Any] | None = None, save_every: float | None = None, **arguments: Any
    ) -> None:
        # A run that resumes in its own folder writes over what it resumed from.
        super().__init__(save_last=True, save_on_exception=True, enable_version_counter=False, **arguments)
        self.identity = dict(identity or {})
        self.save_every = save_every
        self.earlier_seconds = 0.0
        self.resumed_step: int | None = None
        self._started: float | None = None
        self._saved = 0.0
        # The step of the last save by the clock, and Lightning's last saved step before it.
        self._timed = (-1, -1)

    @property
    def train_seconds(self) -> float:
        """Of training so far, that of earlier runs which this one resumed included."""
        return self.earlier_seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Files are written by `WholeFiles`, unless the trainer was given something else than Lightning's."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and remove what a process that was killed had not finished writing."""
        super().on_train_start(trainer, pl_module)
        self._started = self._saved = time.perf_counter()
        if trainer.is_global_zero and self.dirpath is not None:
            for path in Path(self.dirpath).glob(".*.ckpt"):
                path.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid epoch when it is time; the end of the epoch saves by itself."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress
        # Gradients that wait for a step are in no checkpoint.
        waits = batches.current.ready % trainer.accumulate_grad_batches != 0
        if self.save_every is None or batches.is_last_batch or waits:
            return
        # All processes save together, when the first one's clock says so.
        if trainer.strategy.broadcast(time.perf_counter() - self._saved >= self.save_every):
            before = self._last_global_step_saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._timed = (self._last_global_step_saved, before)
            self._saved = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's, and the last epoch also where it is not the best."""
        if trainer.should_stop and isinstance(pl_module, MetricLearner):
            pl_module.fit_readout()  # a callback may have stopped training after the module's own turn
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, where checkpoints are written after validation."""
        # What a validation chooses after a step that the clock saved, Lightning would take for kept already.
        if self._last_global_step_saved == self._timed[0]:
            self._last_global_step_saved = self._timed[1]
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def _keep_last(self, trainer: Trainer) -> None:
        # Lightning 2.6 writes it only of an epoch that it keeps for its score.
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the run stands, unless its weights are not to be trusted."""
        if isinstance(exception, UNTRUSTED) or not self._should_save_on_exception(trainer):
            return
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

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
        self.resumed_step = checkpoint.get("global_step")
        _give_back_unused(checkpoint, trainer.accumulate_grad_batches)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best_model_path"]
        if best and not Path(best).is_file():
            log.warning("The best epoch so far, %s, is gone: the best is sought from here on.", best)
            return
        ours = {"dirpath": self.dirpath, "last_model_path": self.last_model_path}
        super().load_state_dict({**state_dict, **ours})
        if best and self.dirpath is not None:
            self._adopt(Path(best), Path(self.dirpath))

    def _adopt(self, best: Path, folder: Path) -> None:
        """Copy the best epoch of the run that this one goes on from: whatever a run measures lies in it."""
        own = folder / best.name
        if own == best:
            return
        _copy(best, own)
        self.best_model_path = self.kth_best_model_path = str(own)
        if str(best) in self.best_k_models:
            self.best_k_models[str(own)] = self.best_k_models.pop(str(best))


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _give_back_unused(checkpoint: dict[str, Any], batches_per_step: int) -> None:
    """A checkpoint that an exception wrote in mid step counts batches that no weight has learned from."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    progress = loop.get("epoch_loop.batch_progress", {})
    if not progress or progress["is_last_batch"]:
        return
    waiting = progress["current"]["processed"] % batches_per_step
    for counts, name in product((progress["total"], progress["current"]), ("processed", "completed")):
        counts[name] -= waiting
    learned = progress["current"]["processed"]
    for loader in loop.get("state_dict", {}).get("combined_loader", []):
        loader["given"] = min(loader["given"], learned)


def newest_whole(paths: Sequence[Path]) -> Path | None:
    """The first of these checkpoints that can be read; a process may have been killed while it wrote one."""
    return next((path for path, _ in _whole(paths)), None)


def _whole(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in paths:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _ = checkpoint["state_dict"]
        except Exception:  # unpickling raises whatever the bytes suggest
            log.warning("%s is not whole: an older checkpoint is sought.", path)
            continue
        yield path, checkpoint


def newest_of(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The newest checkpoint that can be read: of the run in a folder or, where there is none, of those beside
    it the newest that this run can go on from.

    Args:
        folder: of the run.
        identity: of the run that is to go on.

    Raises:
        ValueError: there is none.
    """
    own = checkpoints(folder)
    if own:
        if (path := newest_whole(own)) is None:
            raise ValueError(
                f"resume_from={LAST}: none of the {len(own)} checkpoints in {folder / CHECKPOINTS} can be "
                "read. Start anew in another folder: hydra.run.dir=<folder>"
            )
        return path
    beside = newest_first(list(folder.parent.glob(f"*/{CHECKPOINTS}/{FINISHED}")))
    for path, checkpoint in _whole(beside):
        if not _obstacles(checkpoint.get(IDENTITY, {}), identity):
            return path
    raise ValueError(
        f"resume_from={LAST}: of the {len(beside)} checkpoints in {folder.parent} none is of a run with "
        "these settings. Repeat that run's overrides, or name its folder (hydra.run.dir=<folder>) or its "
        "checkpoint (resume_from=<file>)."
    )


def check_resumable(learner: nn.Module, path: Path, identity: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint of another network, loss or adversary, of another split, or of other settings.

    Args:
        learner: what is to go on.
        path: of the checkpoint.
        identity: of the run that is to go on; keys of the trainer may differ (more epochs).

    Raises:
        ValueError: there is no such file, it is no checkpoint, it holds other weights or is of a later epoch,
            or it is of a run with another split, manifest or config, whose keys are named.
    """
    if not path.is_file():
        raise ValueError(f"resume_from={path}: no such file. Give a checkpoint of a run (.ckpt).")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
    except Exception as error:  # unpickling raises whatever the bytes suggest
        raise ValueError(
            f"resume_from={path}: not a checkpoint of a run, or one that was cut short. Give another (.ckpt)."
        ) from error
    own = {name: value.shape for name, value in learner.state_dict().items()}
    saved = {name: value.shape for name, value in state.items()}
    differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if differing:
        parts = sorted({".".join(name.split(".")[:2]) for name in differing})
        raise ValueError(
            f"resume_from={path}: the checkpoint is of another configuration; {len(differing)} weights "
            f"differ, in {', '.join(parts)}. Give the overrides of the run that wrote it."
        )
    if identity is not None:
        _check_epochs(path, int(checkpoint.get("epoch", 0)), identity["config"].get("trainer.max_epochs"))
    if identity is not None and IDENTITY in checkpoint:
        _check_identity(path, checkpoint[IDENTITY], identity)
    elif identity is not None:
        log.warning("%s does not say of which split it is: make sure that it is of this one.", path)


def check_frozen_weights(learner: nn.Module, path: Path) -> None:
    """Refuse a checkpoint whose frozen backbone has other weights: its feature maps would be others.

    Raises:
        ValueError: naming the key of the weights.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    own = {
        name: value.cpu()
        for name, value in learner.state_dict().items()
        if name.startswith("embedder.backbone.")
    }
    if any(not torch.equal(value, state[name]) for name, value in own.items()):
        raise ValueError(
            f"resume_from={path}: the frozen backbone of the checkpoint has other weights than this one. "
            "Give those that the run began with: backbone.weights=…"
        )


def _check_epochs(path: Path, epoch: int, most: int | None) -> None:
    # In the last epoch, or at its end, is fine: a run may have been killed while it was measured.
    if most is not None and most >= 0 and epoch >= most:
        raise ValueError(
            f"resume_from={path}: the checkpoint is of epoch {epoch + 1}, past trainer.max_epochs={most}. "
            "Give more epochs, or an earlier checkpoint."
        )


def _check_identity(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if obstacles := _obstacles(saved, own):
        raise ValueError(
            f"resume_from={path}: {obstacles} Give the overrides of the run that wrote it, or start anew "
            "without resume_from."
        )


def _obstacles(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Why a run cannot go on from another one's checkpoint, in words; none if it can."""
    before, now = saved.get("config", {}), own["config"]
    differing = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith("trainer.")
    ]
    # Before the split, which such keys change: what was typed says more than a hash.
    if differing:
        return f"the checkpoint is of a run with other settings: {'; '.join(differing)}."
    for name, what in (("manifest", "other images"), ("split", "another split")):
        if saved.get(name) != own[name]:
            return (
                f"the checkpoint was trained on {what} ({name} {str(saved.get(name))[:12]}…, here "
                f"{str(own[name])[:12]}…), so what it was trained on may validate or test here."
            )
    return ""
