"""Adversaries that add a gradient of their own at the features: reversal, confusion, and their controls.

Their strength ρ is relative: metric losses differ in the length of their gradients, and a mined one leaves
little of it late, so that an absolute λ is either inert or collapses training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, ClassAdversary, entropy


class GradientAdversary(ClassAdversary):
    """Adds to the features' gradient `ρ ‖g‖ r / ‖r‖`: `g` the metric loss's, `r` the adversary's.

    Args:
        per_image: lengths are those of each image's gradient; else of the whole batch's.
        without_conflict: first take from `r` of each image what opposes `g`: where ⟨r, g⟩ < 0,
            `r − ⟨r, g⟩ / ‖g‖² · g` (Yu et al. 2020, arXiv:2001.06782, of two tasks).
        settings: of `ClassAdversary`; its strength is ρ.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, per_image: bool, without_conflict: bool, **settings: Any
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        self.per_image = per_image
        self.without_conflict = without_conflict

    def _doubt(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The cross entropy, or what has the same direction image by image and does not vanish in float32
        where the head is sure: `log Σ_{c ≠ y} exp(logit_c) − logit_y`."""
        return partial(_against_the_class if self.per_image else _cross_entropy, labels=labels)

    @abstractmethod
    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """What is added to the gradient, but for its length, `(B, D)`: features move against it."""

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """Zero, with the wanted gradient at the features; none where nothing that learns comes before them,
        as while the backbone rests."""
        if not features.requires_grad:
            return features.new_zeros((), dtype=torch.float32)
        [metric] = torch.autograd.grad(batch.metric_loss, features, retain_graph=True)
        metric = metric.float()
        pull = self.direction(features, batch.labels)
        if self.without_conflict:
            pull = without_conflict(pull, metric)
        dims = (1,) if self.per_image else (0, 1)
        length = torch.linalg.vector_norm(pull, dim=dims, keepdim=True)
        wanted = torch.linalg.vector_norm(metric, dim=dims, keepdim=True)
        # Where one of the two has no gradient there is nothing to be relative to.
        scaled = torch.where(length > 0, pull / length.clamp(min=1e-30) * wanted, 0.0)
        return strength * ((features - features.detach()).float() * scaled).sum()


class GradientReversal(GradientAdversary):
    """The features climb the head's cross entropy (after Ganin & Lempitsky 2015, section 3)."""

    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """Against the gradient of the cross entropy."""
        return -self.gradient(self._doubt(labels), features)


class Auxiliary(GradientAdversary):
    """The control: an ordinary auxiliary classifier, whose cross entropy the features descend."""

    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the cross entropy."""
        return self.gradient(self._doubt(labels), features)


class Confusion(GradientAdversary):
    """The features climb the entropy of the head's posterior (after Tzeng et al. 2015, section 3.2, with
    entropy in place of the cross entropy to uniform)."""

    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """Against the gradient of the entropy."""
        return -self.gradient(entropy, features)


class RandomGradient(GradientAdversary):
    """The control that knows no class: a direction drawn anew for each image."""

    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """Standard normal."""
        return torch.randn_like(features, dtype=torch.float32)


def without_conflict(pull: Tensor, metric: Tensor) -> Tensor:
    """`pull (B, D)` without the part of each row that opposes the same row of `metric`."""
    along = (pull * metric).sum(dim=1, keepdim=True).clamp(max=0)
    return pull - along / metric.square().sum(dim=1, keepdim=True).clamp(min=1e-30) * metric


def _against_the_class(logits: Tensor, labels: Tensor) -> Tensor:
    own = functional.one_hot(labels, logits.shape[1]).bool()
    return (logits.masked_fill(own, -torch.inf).logsumexp(dim=1) - logits[own]).sum()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="sum")
