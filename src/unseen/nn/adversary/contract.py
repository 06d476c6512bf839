"""What every class adversary is: a classifier of the seen classes, and what it does to the features.

Only the abstract of Al-Kaabi et al. (2022) describes the class adversarial network, so its wiring is open.
All forms share a head that learns on detached, L2-normalised features: it cannot be escaped through their
length, and no form can reach it but through `strike`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from unseen.nn.adversary.strength import Strength
from unseen.nn.embedder import Embedded, Embedder


class VirtualClasses(NamedTuple):
    """Embeddings of `V` classes that do not exist, each between two seen ones.

    Args:
        embeddings: `(N, d)`.
        labels: `(N,)` int64 in 0..V-1.
        pairs: `(V, 2)` int64, the seen classes that each lies between.
        share: μ of the first class of a pair, 1 − μ of the second.
        num_classes: seen classes, C.
    """

    embeddings: Tensor
    labels: Tensor
    pairs: Tensor
    share: float
    num_classes: int


@dataclass(frozen=True)
class AdversaryInput:
    """What an adversary may look at in a training step of `B` images, those of all processes.

    Args:
        embedded: fused features and embedding, with their graph; the feature maps of this process's images,
            and what the fusion pooled only for a form that `sees_positions`.
        embedder: that gave them.
        labels: `(B,)` int64 in 0..C-1.
        metric_loss: scalar, of the embedding, with its graph.
        metric: other embeddings of the same images, `(B, d)` → the metric loss.
        metric_among: virtual classes → the metric loss of the batch and them together.
    """

    embedded: Embedded
    embedder: Embedder
    labels: Tensor
    metric_loss: Tensor
    metric: Callable[[Tensor], Tensor]
    metric_among: Callable[[VirtualClasses], Tensor]


class AdversaryOutput(NamedTuple):
    """What an adversary says of a batch.

    Args:
        loss: scalar, added to the metric loss.
        logits: `(B, C)`, the head's classification.
    """

    loss: Tensor
    logits: Tensor


class CosineHead(nn.Module):
    """`f ↦ scale · cos(w_c, ReLU(A f / ‖f‖ + a))` for each class c.

    Args:
        in_features: D.
        num_classes: C.
        hidden: units between.
        scale: of the cosines; the logits lie in [−scale, scale].
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: int, scale: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.classes = nn.Parameter(functional.normalize(torch.randn(num_classes, hidden), dim=1))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D)` of any length → logits `(B, C)`."""
        hidden = functional.relu(self.hidden(functional.normalize(features, dim=1)))
        return self.scale * functional.linear(
            functional.normalize(hidden), functional.normalize(self.classes)
        )


class ClassAdversary(nn.Module, ABC):
    """A head on the features, trained by cross entropy without label smoothing, and `strike`.

    Smoothed cross entropy has a minimum at p_y < 1, beyond which climbing it raises the head's confidence:
    what reverses it would there do the opposite.

    Args:
        in_features: D.
        num_classes: seen classes, C.
        hidden: units of the head's hidden layer.
        scale: of the head's cosines.
        silent_epochs: at the start, in which the head learns and the features are left alone.
        strength: λ as a function of training progress; what it scales, each form says.
        sees: what the head sees: the `fused` features or the `embedding`.

    Raises:
        ValueError: a number is out of range, or `sees` is unknown or not what this form can see.
    """

    sees_only: ClassVar[str | None] = None
    """What a form must see; none where it may see either."""
    sees_positions: ClassVar[bool] = False
    """Whether a form looks at what the fusion pooled; several processes send each other that only then."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: int,
        scale: float,
        silent_epochs: int,
        strength: Strength,
        sees: Literal["fused", "embedding"],
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden={hidden}: the adversary's hidden layer needs at least 1 unit.")
        if not scale > 0:
            raise ValueError(f"scale={scale}: the scale of the head's cosines is positive.")
        if silent_epochs < 0:
            raise ValueError(f"silent_epochs={silent_epochs}: wanted 0 or more.")
        if sees not in ("fused", "embedding"):
            raise ValueError(f"sees={sees!r}: the adversary sees 'fused' or 'embedding'.")
        if self.sees_only not in (None, sees):
            raise ValueError(f"sees={sees!r}: {type(self).__name__} can only see '{self.sees_only}'.")
        if not strength(1.0) >= 0:
            raise ValueError(f"strength.maximum={strength(1.0)}: λ is not negative.")
        self.head = CosineHead(in_features, num_classes, hidden=hidden, scale=scale)
        self.silent_epochs = silent_epochs
        self.sees = sees
        self._strength = strength

    @property
    def replaced(self) -> float:
        """The largest share of the metric loss of the embedding that it takes away to put another there."""
        return 0.0

    def strength_at(self, progress: float, epoch: int) -> float:
        """λ after a share `progress` of all steps, in the epoch that is counted from 0."""
        return 0.0 if epoch < self.silent_epochs else self._strength(progress)

    def forward(self, batch: AdversaryInput, strength: float) -> AdversaryOutput:
        """The head's cross entropy, and at λ = `strength` > 0 what the features must do about it."""
        features = self.seen_features(batch.embedded)
        logits = self.head(features.detach()).float()
        loss = functional.cross_entropy(logits, batch.labels)
        self.check(batch)
        if strength > 0:
            loss = loss + self.strike(batch, features, strength)
        return AdversaryOutput(loss, logits)

    def check(self, batch: AdversaryInput) -> None:
        """Refuse, in the first step already, what it could not strike at.

        Raises:
            ValueError: naming what to choose in its place.
        """

    @abstractmethod
    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """A scalar whose gradient moves the embedder (and the metric loss), never the head.

        Args:
            batch: see `AdversaryInput`.
            features: `(B, D)`, what the head sees, with their graph.
            strength: λ > 0.
        """

    def seen_features(self, embedded: Embedded) -> Tensor:
        """`(B, D)` that the head sees, of any floating type."""
        return embedded.fused.features if self.sees == "fused" else embedded.embedding

    def as_constant(self, features: Tensor) -> Tensor:
        """Logits `(B, C)` of a head that does not learn from them: their graph leads to the features."""
        frozen = {name: parameter.detach() for name, parameter in self.head.named_parameters()}
        logits: Tensor = functional_call(self.head, frozen, features)
        return logits.float()

    def gradient(self, objective: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """Of a sum over images, `logits (B, C)` → scalar: at the features, `(B, D)` float32, no graph."""
        with torch.enable_grad():
            leaf = features.detach().float().requires_grad_()
            [gradient] = torch.autograd.grad(objective(self.as_constant(leaf)), leaf)
        return gradient


def entropy(logits: Tensor) -> Tensor:
    """Sum over images of the entropy of the posterior, of logits `(B, C)`; nats."""
    log_posterior = logits.log_softmax(dim=1)
    return -(log_posterior.exp() * log_posterior).sum()
