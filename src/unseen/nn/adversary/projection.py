"""Confusion at the last projection alone: the gradient stops at the fused features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, ClassAdversary


class ProjectionConfusion(ClassAdversary):
    """Projections of different classes are drawn together (after Chen & Deng 2019, "Energy confused
    adversarial metric learning", AAAI, eq. 3): `λ log mean_{y_i ≠ y_j} ½ ‖u_i − u_j‖²`, `u = W · sg(f) + b`.

    sg stops the gradient: only the projection moves. Its head does nothing but watch.

    Args:
        normalized: of `u / ‖u‖`. Without it, as published, the energy falls fastest by making u short, which
            changes nothing of a normalised embedding.
        settings: of `ClassAdversary`; its strength is λ.
    """

    def __init__(self, in_features: int, num_classes: int, *, normalized: bool, **settings: Any) -> None:
        super().__init__(in_features, num_classes, **settings)
        self.normalized = normalized

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """λ times the log of the mean energy; zero for a batch of one class."""
        # In float32, whatever training runs in: the energy is a small difference of large numbers.
        with torch.autocast(features.device.type, enabled=False):
            return strength * self._log_energy(batch)

    def _log_energy(self, batch: AdversaryInput) -> Tensor:
        projected = batch.embedder.projection(batch.embedded.fused.features.detach().float())
        if self.normalized:
            # As the embedding has it: what a layer norm takes away would lower the energy of u alone.
            if batch.embedder.layer_norm:
                projected = functional.layer_norm(projected, projected.shape[1:])
            projected = functional.normalize(projected, dim=1)
        different = batch.labels.unsqueeze(0) != batch.labels.unsqueeze(1)
        if not bool(different.any()):
            return projected.sum() * 0
        squares = projected.square().sum(dim=1)
        energy = (squares.unsqueeze(0) + squares.unsqueeze(1)) / 2 - projected @ projected.T
        return torch.log(energy[different].mean().clamp(min=1e-12))


class PosteriorConfusion(ClassAdversary):
    """The projection drives the head's posterior to uniform: `λ KL(uniform ‖ h(u / ‖u‖))`, `u = W · sg(f) +
    b`.

    Args:
        settings: of `ClassAdversary`; its strength is λ. It must see the embedding.

    Raises:
        ValueError: it sees the fused features.
    """

    sees_only = "embedding"

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """λ times the mean divergence, nats."""
        embedding = batch.embedder.embed_features(batch.embedded.fused.features.detach())
        log_posterior = self.as_constant(embedding).log_softmax(dim=1)
        classes = log_posterior.shape[1]
        uniform = torch.full_like(log_posterior, 1 / classes)
        return strength * functional.kl_div(log_posterior, uniform, reduction="batchmean")
