"""Joins embedder, metric loss, class adversary and regulariser into one trainable module."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from unseen.data.batch import Batch
from unseen.evaluation.readout import fit_readout
from unseen.losses import (
    CrossBatchMemory,
    WeightedSum,
    loss_among,
    not_remembering,
    parameters_by_kind,
    remembering_afterwards,
)
from unseen.nn.adversary import AdversaryInput, AdversaryOutput, ClassAdversary, VirtualClasses
from unseen.nn.backbone import FeatureMaps
from unseen.nn.embedder import Embedded, Embedder
from unseen.nn.regularizer import Regularizer, RegularizerInput
from unseen.nn.trainable import everything, layers
from unseen.retrieval import RetrievalMetric, evaluate
from unseen.training.centres import ClassCentres
from unseen.training.optimization import Optimization, pull_back
from unseen.training.processes import all_rows, count, of_all, sum_over_processes

log = logging.getLogger(__name__)

EPOCH = "epoch_sums"
"""Key of a checkpoint under which it has the sums of an epoch that is not over, of each logged mean."""
STEP_LOGS = "training_step."


def memory_layout(channels_last: bool) -> torch.memory_format:
    """Of images and weights; convolutions on a CPU are fastest with channels last."""
    return torch.channels_last if channels_last else torch.contiguous_format


class MetricLearner(LightningModule):
    """Minimises `L_metric + L_adversary + L_regularizer` in one optimiser step.

    Several processes train as one with all their images in its batch: see `unseen.training.processes`.

    Args:
        embedder: images → embedding.
        loss: `(embeddings (B, d), labels (B,), ids (B,))` → scalar; its parameters learn too.
        adversary: classifier of the seen classes, or none.
        optimization: learning rates, schedule, frozen warm-up.
        trainable: names of the backbone's parameters that learn; none of them rest by default.
        keeps_pretrained: have a copy of the backbone as it is now, which goes into checkpoints; averaging
            with it and `Optimization.l2_sp` need one.
        evaluate: embeddings `(N, d)` and labels `(N,)` → retrieval result; for the validation classes.
        channels_last: keep images and weights in the memory layout that CPU and GPU convolutions prefer.
        regularizer: what is added to the loss, or none.
        centres: of the classes, for a sampler that wants them, or none.

    Attributes:
        pretrained: that copy, or none.
    """

    def __init__(
        self,
        embedder: Embedder,
        loss: nn.Module,
        adversary: ClassAdversary | None,
        optimization: Optimization,
        trainable: Collection[str] | None = None,
        keeps_pretrained: bool = False,
        evaluate: Callable[..., Any] = evaluate,
        channels_last: bool = True,
        regularizer: Regularizer | None = None,
        centres: ClassCentres | None = None,
    ) -> None:
        super().__init__()
        layout = memory_layout(channels_last)
        self.embedder = embedder.to(memory_format=layout)
        self.loss = loss
        self.adversary = adversary
        self.regularizer = None if regularizer is None else regularizer.to(memory_format=layout)
        self.centres = centres
        self.optimization = optimization
        chosen = everything(embedder.backbone) if trainable is None else trainable
        self.trainable = frozenset() if embedder.backbone.frozen else chosen
        self.embedder.choose_trainable(self.trainable)
        self._layers = layers(embedder.backbone) if optimization.layer_decay < 1 else []
        self.pretrained = copy.deepcopy(embedder.backbone).requires_grad_(False) if keeps_pretrained else None
        self.validation = RetrievalMetric(evaluate)
        self._layout = layout
        # Sum of the weights that the readout was last fitted to.
        self._fitted_to = math.nan
        # Of the epoch's logged means: before the step that is being made, and before a run was resumed.
        self._sums_before: dict[str, tuple[Tensor, Tensor]] = {}
        self._sums_to_recall: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def progress(self) -> float:
        """Share of the optimiser steps that is done, in [0, 1]; restored with a checkpoint."""
        return min(1.0, self.global_step / max(1, self.trainer.estimated_stepping_batches))

    def forward(self, images: Tensor) -> Embedded:
        """`images`: `(B, 3, H, W)`, uint8 or float in [0, 1]."""
        return self.embedder(images.contiguous(memory_format=self._layout))

    def _embedded(self, batch: Batch) -> Embedded:
        if batch.images is not None:
            return self(batch.images)
        return self.embedder.embed_maps(FeatureMaps.of(batch.maps))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step on images `(B, 3, H, W)`, or on their feature maps, with seen labels.

        What is logged is of the images of all processes, and so the same in each.
        """
        self._recall_epoch()
        embedded = self._embedded(batch)
        if count() > 1:
            with_positions = self.adversary is not None and self.adversary.sees_positions
            embedded, batch = of_all(embedded, batch, self.embedder, with_positions)
        if self.centres is not None:
            self.centres.add(embedded.embedding.detach(), batch.labels)
        # Once all that this step compares has been compared with what earlier steps left.
        with remembering_afterwards(self.loss):
            return self._objective(embedded, batch, batch_index)

    def _objective(self, embedded: Embedded, batch: Batch, batch_index: int) -> Tensor:
        """The sum of metric loss, adversary and regulariser."""
        metric_loss = self.loss(embedded.embedding, batch.labels, batch.ids)
        self._log_train("metric_loss", metric_loss, len(batch.labels))
        # Zero is what is left without any pair or triplet; the epoch's mean is the share of such batches.
        self._log_train("batches_without_pairs", (metric_loss.detach() == 0).float(), 1)
        if isinstance(self.loss, WeightedSum):
            for name, value in self.loss.last.items():
                self._log_train(f"metric_loss_{name}", value, len(batch.labels))
            if self.loss.learned_within is not None:
                for name, weight in self.loss.weights.items():
                    self._log_train(f"metric_loss_weight_{name}", weight, 1)
        adversary = self._adversary_step(embedded, batch, metric_loss)
        regularizer = self._regularizer_step(embedded, batch, metric_loss)
        objectives = {"metric": metric_loss}
        if adversary is not None:
            objectives["adversary"] = adversary.loss
        if regularizer is not None:
            objectives["regularizer"] = regularizer
        if batch_index == 0:
            self._log_gradient_norms(embedded, objectives)
        total = sum(list(objectives.values())[1:], metric_loss)
        self._log_train("loss", total, len(batch.labels))
        return total

    def _adversary_step(
        self, embedded: Embedded, batch: Batch, metric_loss: Tensor
    ) -> AdversaryOutput | None:
        if self.adversary is None:
            return None
        labels = batch.labels
        strength = self.adversary.strength_at(self.progress, self.current_epoch)
        sight = AdversaryInput(
            embedded,
            self.embedder,
            labels,
            metric_loss,
            metric=functools.partial(self._metric_of, labels=labels, ids=batch.ids),
            metric_among=functools.partial(self._metric_among, embedded=embedded, batch=batch),
        )
        output = self.adversary(sight, strength)
        accuracy = (output.logits.argmax(1) == labels).float().mean()
        cross_entropy = nn.functional.cross_entropy(output.logits.detach().float(), labels)
        self._log_train("adversary_strength", strength, len(labels))
        self._log_train("adversary_accuracy", accuracy, len(labels))
        self._log_train("adversary_loss", cross_entropy, len(labels))
        length = embedded.fused.features.detach().float().norm(dim=1).mean()
        self._log_train("feature_norm", length, len(labels))
        return output

    def _regularizer_step(self, embedded: Embedded, batch: Batch, metric_loss: Tensor) -> Tensor | None:
        if self.regularizer is None:
            return None
        sight = RegularizerInput(
            None if batch.images is None else batch.images.contiguous(memory_format=self._layout),
            embedded,
            self.embedder,
            batch.labels,
            batch.ids,
            metric_loss,
            metric=self._metric_of,
            all_rows=all_rows,
        )
        added: Tensor = self.regularizer(sight)
        self._log_train("regularizer_loss", added, len(batch.labels))
        return added

    def _metric_of(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The metric loss of other embeddings `(N, d)` than those of the images, which no memory keeps."""
        with not_remembering(self.loss):
            return self.loss(embeddings, labels, ids)

    def _metric_among(self, virtual: VirtualClasses, embedded: Embedded, batch: Batch) -> Tensor:
        """The metric loss of the batch together with virtual classes."""
        with not_remembering(self.loss):
            return loss_among(
                self.loss,
                embedded.embedding,
                batch.labels,
                batch.ids,
                virtual=virtual.embeddings,
                virtual_labels=virtual.labels,
                pairs=virtual.pairs,
                share=virtual.share,
                num_classes=virtual.num_classes,
            )

    def _log_train(self, name: str, value: Tensor | float, batch_size: int) -> None:
        self.log(
            f"train/{name}",
            value,
            on_step=False,
            on_epoch=True,
            batch_size=batch_size,
            prog_bar=name == "loss",
        )

    def _log_gradient_norms(self, embedded: Embedded, objectives: Mapping[str, Tensor]) -> None:
        """Once an epoch: how hard each objective pulls at the feature maps that the backbone gives."""
        maps = [tensor for tensor in (*embedded.maps.taps, embedded.maps.final) if tensor.requires_grad]
        if not maps:
            return
        flat = []
        for objective in objectives.values():
            gradients = torch.autograd.grad(
                objective, maps, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            flat.append(torch.cat([gradient.float().flatten() for gradient in gradients]))
        names, rows = list(objectives), torch.stack(flat) / count()  # which `all_rows` multiplied by
        with torch.autocast(self.device.type, enabled=False):
            products = sum_over_processes(rows @ rows.T)
        norms = products.diagonal().sqrt()
        for name, norm in zip(names, norms, strict=True):
            self._log_train(f"gradient_norm_{name}", norm, 1)
        if "adversary" in objectives:
            other = names.index("adversary")
            cosine = products[0, other] / (norms[0] * norms[other]).clamp(min=1e-8)
            self._log_train("gradient_cosine", cosine, 1)

    def _epoch_sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What this epoch's means, as logged by steps, were computed of so far: weighted sum, and weight."""
        logged: dict[str, Any] = self.trainer.fit_loop.epoch_loop._results
        return {
            key.removeprefix(f"{STEP_LOGS}train/"): (result.value, result.cumulated_batch_size)
            for key, result in logged.items()
            if key.startswith(STEP_LOGS) and not result.has_reset
        }

    def _recall_epoch(self) -> None:
        """Lightning forgets what an epoch logged before it was interrupted: log it again."""
        for name, (total, weight) in self._sums_to_recall.items():
            self._log_train(name, total.to(self.device), 1)
            self._log_train(name, 0.0, int(weight) - 1)
        self._sums_to_recall = {}
        if (self._batches.ready - 1) % self.trainer.accumulate_grad_batches == 0:
            self._sums_before = self._epoch_sums()

    @property
    def _batches(self) -> Any:
        """Of this epoch, how many were begun and done."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """An epoch that goes on later has the mean of all its steps, without one that was not finished."""
        if not self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            done = self._batches.processed
            begun = done < self._batches.ready or done % self.trainer.accumulate_grad_batches != 0
            checkpoint[EPOCH] = self._sums_before if begun else self._epoch_sums()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self._sums_to_recall = checkpoint.get(EPOCH, {})

    def on_train_start(self) -> None:
        """A run that resumes in mid epoch sees no start of that epoch.

        Nor does Lightning hand the loader its state back then: counting steps for the schedule has set the
        loader up before the checkpoint was read.
        """
        self.trainer.fit_loop._load_combined_loader_states()
        self._warn_of_idle_parts()
        self.on_train_epoch_start()

    def _warn_of_idle_parts(self) -> None:
        """Say what this training is too short for."""
        epochs, steps = self.trainer.max_epochs or 0, int(self.trainer.estimated_stepping_batches)
        batches = steps * self.trainer.accumulate_grad_batches
        waits = "%s=%d and trainer.max_epochs=%d: this run is over before %s."
        if self.adversary is not None and 0 < epochs <= self.adversary.silent_epochs:
            log.warning(waits, "adversary.silent_epochs", self.adversary.silent_epochs, epochs, "it acts")
        if 0 < epochs <= (rests := self.optimization.frozen_backbone_epochs):
            log.warning(waits, "optimizer.frozen_backbone_epochs", rests, epochs, "the backbone learns")
        for memory in self.loss.modules():
            if isinstance(memory, CrossBatchMemory) and memory.warmup >= batches:
                log.warning(
                    "memory.warmup=%d and %d batches: the memory is never used.", memory.warmup, batches
                )

    def on_train_epoch_start(self) -> None:
        """Freeze the backbone during its warm-up; a pure function of the epoch, so it resumes."""
        rests = self.current_epoch < self.optimization.frozen_backbone_epochs
        self.embedder.choose_trainable(() if rests else self.trainable)
        self._tell_centres()

    def _tell_centres(self) -> None:
        """Let the sampler of this epoch know them, before it makes its first batch."""
        centres = None if self.centres is None else self.centres.begin(self.current_epoch)
        if centres is not None:
            # Sums on GPUs differ in their last digits; batches must not, between processes.
            same = self.trainer.strategy.broadcast(centres.cpu())
            self.trainer.train_dataloader.batch_sampler.centres = same.numpy()  # type: ignore[union-attr]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Pull the backbone back to where it started, if asked for."""
        if self.pretrained is None or self.optimization.l2_sp == 0:
            return
        starts = zip(self.embedder.backbone.parameters(), self.pretrained.parameters(), strict=True)
        pull_back(optimizer, starts, self.optimization.l2_sp)

    def on_validation_epoch_start(self) -> None:
        """What is validated is what would be deployed."""
        self.fit_readout()

    def on_train_epoch_end(self) -> None:
        """Before the last checkpoint is written, what is deployed is fitted to the final weights."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        if self.trainer.should_stop or self.current_epoch + 1 == epochs or self.global_step == steps:
            self.fit_readout()

    def on_train_end(self) -> None:
        """Likewise where no checkpoint was written at the end of an epoch."""
        self.fit_readout()

    def fit_readout(self) -> None:
        """Fit what is deployed to the weights as they are, unless it has been."""
        # A callback may have put other weights in place, such as averaged ones, without a step.
        weights = sum(float(one.detach().sum()) for one in self.embedder.parameters())
        if self._fitted_to != weights:
            fit_readout(self.embedder, self.trainer.datamodule)  # type: ignore[attr-defined]
            self._fitted_to = weights

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Embed images of the validation classes in float32, as the measurement does."""
        with torch.autocast(self.device.type, enabled=False):
            embedded = self._embedded(batch)
        self.validation.update(embedded.embedding, batch.labels, batch.ids)

    def on_validation_epoch_end(self) -> None:
        """Retrieval among the validation classes, which training does not see.

        All ranks' images together, each once: every rank computes, and logs, the same.
        """
        for name, value in self.validation.compute().items():
            # Synchronised already; Lightning would warn that it is not.
            self.log(f"validation/{name}", value.item(), prog_bar=name == "recall_at_1", sync_dist=True)
        self.validation.reset()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of all, the adversary by its own: it must not shorten the steps of what is deployed."""
        if self.adversary is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        own = list(self.adversary.parameters())
        known = {id(weight) for weight in own}
        held = (weight for group in optimizer.param_groups for weight in group["params"])
        for part in (own, [weight for weight in held if id(weight) not in known]):
            nn.utils.clip_grad_norm_(part, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """One optimiser; backbone, head, adversary, proxies and the rest of the loss in their own groups.

        What of the backbone does not learn is in none.
        """
        head = [*self.embedder.fusion.parameters(), *self.embedder.projection.parameters()]
        backbone = dict(self.embedder.backbone.named_parameters())
        learning = {name: weight for name, weight in backbone.items() if name in self.trainable}
        if len(learning) < len(backbone):
            sizes = [sum(weight.numel() for weight in held.values()) for held in (backbone, learning)]
            log.info("Of %s parameters of the backbone %s learn.", *(f"{size:,}" for size in sizes))
        losses = [self.loss]
        if self.regularizer is not None:
            head += self.regularizer.new_layers()
            losses += self.regularizer.losses
        kinds: dict[str, Iterable[nn.Parameter]] = {
            "backbone": learning.values(),
            "head": head,
            "adversary": self.adversary.parameters() if self.adversary is not None else [],
            **parameters_by_kind(nn.ModuleList(losses)),
        }
        return self.optimization.configure(
            kinds,
            int(self.trainer.estimated_stepping_batches),
            [[backbone[name] for name in names] for names in self._layers],
        )
