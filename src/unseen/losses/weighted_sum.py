"""Several losses at once: a weighted sum with the contract of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

from torch import Tensor, nn

from unseen.losses.adapter import as_metric_loss


class WeightedSum(nn.Module):
    """Σ weight · loss of the same embeddings; each part keeps its own miner, memory and parameters.

    Args:
        parts: name → weight and loss; any loss that `as_metric_loss` takes.

    Raises:
        ValueError: there is no part, a name that no module can have, or a weight that is not positive.
    """

    last: dict[str, Tensor]
    """Value of each part, unweighted and without gradient, in the latest call; empty before it."""

    def __init__(self, parts: Mapping[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty: name at least one loss, such as {'triplet': (1.0, loss)}.")
        for name, (weight, _) in parts.items():
            if not name or "." in name:
                raise ValueError(
                    f"parts has the name {name!r}: wanted a name that is not empty, without '.'."
                )
            if not (isfinite(weight) and weight > 0):
                raise ValueError(f"parts[{name!r}] has weight {weight}: wanted a positive number.")
        self.weights = {name: float(weight) for name, (weight, _) in parts.items()}
        self.parts = nn.ModuleDict({name: as_metric_loss(loss) for name, (_, loss) in parts.items()})
        self.last = {}

    def forward(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The weighted sum, a float32 scalar.

        Args:
            embeddings: `(B, d)` of any floating type.
            labels: `(B,)` int64 in 0..C-1.
            ids: `(B,)` int64; which image each embedding is of.
        """
        values = {name: part(embeddings, labels, ids) for name, part in self.parts.items()}
        self.last = {name: value.detach() for name, value in values.items()}
        weighted = [self.weights[name] * value for name, value in values.items()]
        return sum(weighted[1:], weighted[0])


def weighted_sum(
    parts: Mapping[str, Callable[..., nn.Module]],
    weights: Mapping[str, float],
    *,
    num_classes: int,
    embedding_size: int,
) -> WeightedSum:
    """A weighted sum of losses that are made for a number of classes and dimensions.

    Args:
        parts: name → makes a loss from `num_classes` and `embedding_size`.
        weights: one for each of the parts.
        num_classes: training classes, C.
        embedding_size: d.

    Raises:
        ValueError: parts and weights have different names, or a part or a weight is refused.
    """
    if set(parts) != set(weights):
        raise ValueError(f"weights are given for {sorted(weights)}, wanted one for each of {sorted(parts)}.")
    made = {
        name: (weights[name], make(num_classes=num_classes, embedding_size=embedding_size))
        for name, make in parts.items()
    }
    return WeightedSum(made)
