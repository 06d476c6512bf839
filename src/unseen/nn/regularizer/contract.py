"""What every regulariser is: a term beside the metric loss, whichever that is, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from unseen.nn.embedder import Embedded, Embedder

MakeLoss = Callable[[int], nn.Module]
"""Size of an embedding → the run's metric loss, made anew for it: `(embeddings, labels, ids)` → scalar."""


@dataclass(frozen=True)
class RegularizerInput:
    """What a regulariser may look at in a training step of `B` images, those of all processes.

    Args:
        images: `(B, 3, H, W)`, as the embedder saw them; none where it was given feature maps. Of several
            processes each has its own share of them.
        embedded: feature maps, fused features and embedding, with their graph.
        embedder: that gave them.
        labels: `(B,)` int64 in 0..C-1.
        ids: `(B,)` int64; which image each is.
        metric_loss: scalar, of the embedding, with its graph.
        metric: embeddings `(N, d)`, labels `(N,)` and ids `(N,)` → the metric loss of them alone.
        all_rows: what was computed of `images`, a row each → the rows of all processes, `(B, …)`.
    """

    images: Tensor | None
    embedded: Embedded
    embedder: Embedder
    labels: Tensor
    ids: Tensor
    metric_loss: Tensor
    metric: Callable[[Tensor, Tensor, Tensor], Tensor]
    all_rows: Callable[[Tensor], Tensor] = lambda rows: rows


class Regularizer(nn.Module, ABC):
    """Gives what is added to the metric loss of a batch. It is for training: no export holds it.

    What it makes is called with `embedder` and `loss` (see `MakeLoss`). All that it needs to go on, random
    numbers of PyTorch's own apart, is in its state.
    """

    sees_images: ClassVar[bool] = False
    """Whether it needs the images themselves, which a frozen backbone does not look at again."""
    losses: nn.ModuleList
    """Metric losses of its own; their parameters learn as those of a loss do, all others as new layers."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = nn.ModuleList()

    @property
    def replaced(self) -> float:
        """The share of the metric loss of the embedding that it takes away to put another there."""
        return 0.0

    @abstractmethod
    def forward(self, batch: RegularizerInput) -> Tensor:
        """A scalar, already weighted; its gradient may move all that learns."""

    def new_layers(self) -> list[nn.Parameter]:
        """What learns and is of no loss."""
        of_losses = {id(parameter) for parameter in self.losses.parameters()}
        return [one for one in self.parameters() if one.requires_grad and id(one) not in of_losses]


def check_strength(strength: float) -> None:
    """Refuse a weight that is not positive.

    Raises:
        ValueError: it is not.
    """
    if not strength > 0:
        raise ValueError(f"regularizer.strength={strength}: wanted a positive number, or regularizer=none.")


def made_anew(loss: MakeLoss, size: int, regularizer: str) -> nn.Module:
    """The metric loss for embeddings of another size.

    Args:
        loss: makes it.
        size: of the embeddings.
        regularizer: whose choice is named when it cannot be.

    Raises:
        ValueError: the loss is an object with parameters or a memory, which can be of one size only.
    """
    made = loss(size)
    if _with_state(made) & _with_state(loss(size)):
        raise ValueError(
            f"regularizer={regularizer} makes the loss anew for embeddings of another size, but the loss is "
            f"an object ({type(made).__name__}) with parameters or a memory. Give the loss by its name."
        )
    return made


def _with_state(loss: nn.Module) -> set[int]:
    """The loss, or those of several that a sum is made of, as far as they have parameters or a memory."""
    parts = getattr(loss, "parts", None)
    each = parts.values() if isinstance(parts, nn.ModuleDict) else [loss]
    return {id(one) for one in each if one.state_dict()}
