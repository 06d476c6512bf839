"""The class adversary (CANN): a classifier of the seen classes, whose gradient the features resist.

Only the abstract of Al-Kaabi et al. (2022) describes it; this is a reconstruction after DANN (Ganin &
Lempitsky 2015): `min_{θ_f, θ_e, proxies} max_{θ_c} L_DML − λ L_cls`, one optimiser step for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Strength = Callable[[float], float]
"""Training progress `p` in [0, 1] → λ."""


def constant(progress: float, *, maximum: float) -> float:
    """λ = λ_max."""
    return maximum


def linear(progress: float, *, maximum: float) -> float:
    """λ = λ_max · p."""
    return maximum * progress


def dann(progress: float, *, maximum: float) -> float:
    """λ = λ_max (2 / (1 + e^{−10p}) − 1) (Ganin & Lempitsky 2015, section 5.2.2)."""
    return maximum * (2 / (1 + math.exp(-10 * progress)) - 1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradient, None


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """Identity forward, `−strength` times the gradient backward."""
    return _Reverse.apply(features, strength)


class AdversaryOutput(NamedTuple):
    """What an adversary says of a batch.

    Args:
        loss: scalar, added to the metric loss.
        logits: `(B, C)`, the head's classification.
    """

    loss: Tensor
    logits: Tensor


class ClassAdversary(nn.Module, ABC):
    """Head `Linear(D, h) – ReLU – Linear(h, C)` on the features, trained by cross entropy with weight 1.

    Args:
        in_features: D.
        num_classes: seen classes, C.
        hidden: h.
        label_smoothing: of the cross entropy, in [0, 1].
        strength: λ as a function of training progress.
        sees: what the adversary sees: the `fused` features or the `embedding`.

    Raises:
        ValueError: a size is below 1, the smoothing outside [0, 1], or `sees` unknown.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: int,
        label_smoothing: float,
        strength: Strength,
        sees: Literal["fused", "embedding"],
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden={hidden}: the adversary's hidden layer needs at least 1 unit.")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing}: wanted a number in [0, 1].")
        if sees not in ("fused", "embedding"):
            raise ValueError(f"sees={sees!r}: the adversary sees 'fused' or 'embedding'.")
        if not strength(1.0) >= 0:
            raise ValueError(f"strength.maximum={strength(1.0)}: λ is not negative.")
        self.head = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        self.label_smoothing = label_smoothing
        self.strength_at = strength
        self.sees = sees

    @abstractmethod
    def forward(self, features: Tensor, labels: Tensor, strength: float) -> AdversaryOutput:
        """Features `(B, D)` and labels `(B,)` in 0..C-1 → loss and logits, at λ = `strength`."""

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class GradientReversal(ClassAdversary):
    """The default: the head descends the cross entropy, the features climb it with weight λ."""

    def forward(self, features: Tensor, labels: Tensor, strength: float) -> AdversaryOutput:
        """See `ClassAdversary.forward`."""
        logits = self.head(reverse_gradient(features, strength))
        return AdversaryOutput(self._cross_entropy(logits, labels), logits)


class Confusion(ClassAdversary):
    """The features climb the entropy of the head's posterior with weight λ; the head learns on detached ones.

    After the confusion loss of Tzeng et al. (2015), with entropy in place of the cross entropy to uniform.
    """

    def forward(self, features: Tensor, labels: Tensor, strength: float) -> AdversaryOutput:
        """See `ClassAdversary.forward`."""
        logits = self.head(features.detach())
        # The same head, but as a constant: the entropy moves the features and nothing else.
        frozen = {name: parameter.detach() for name, parameter in self.head.named_parameters()}
        log_posterior = functional_call(self.head, frozen, features).log_softmax(dim=1)
        entropy = -(log_posterior.exp() * log_posterior).sum(dim=1).mean()
        return AdversaryOutput(self._cross_entropy(logits, labels) - strength * entropy, logits)


class Auxiliary(ClassAdversary):
    """The control: an ordinary auxiliary classifier, no reversal; the features descend with weight λ."""

    def forward(self, features: Tensor, labels: Tensor, strength: float) -> AdversaryOutput:
        """See `ClassAdversary.forward`."""
        logits = self.head(reverse_gradient(features, -strength))
        return AdversaryOutput(self._cross_entropy(logits, labels), logits)
