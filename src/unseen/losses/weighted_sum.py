"""Several losses at once: a weighted sum with the contract of one, its weights given or learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, log

import torch
from torch import Tensor, nn

from unseen.losses.adapter import as_metric_loss


class WeightedSum(nn.Module):
    r"""Σ weight · loss of the same embeddings; each part keeps its own miner, memory and parameters.

    An ensemble of losses on one network whose weights are learned with it was proposed for metric learning
    by Zabihzadeh et al. (2021, arXiv:2107.01130). Weights `w_i` cannot simply be trained to make
    `Σ w_i L_i` small: that gives all weight to the smallest loss. So they are learned as in Kendall et al.
    (2018, arXiv:1705.07115, eq. 7, multi-task learning with an uncertainty σ_i of each task), twice their
    objective with `w_i = 1 / σ_i²` relative to the weight `v_i` that was given:

    .. math:: \sum_i w_i L_i - \log w_i, \quad
        w_i = v_i\, r^{\tanh \theta_i}, \quad \theta_i = 0 \text{ at the start}

    The logarithm pulls each weight towards `1 / L_i`, where all losses count the same, whatever their scale.
    The bound `v_i / r < w_i < v_i r` (ours) keeps every loss in the sum, also where another one is zero (a
    miner found no triplet) or negative (Proxy-NCA), for which `1 / L_i` is no weight. The value is that of
    the weighted sum; only the gradient of θ has the logarithm's.

    Args:
        parts: name → weight and loss; any loss that `as_metric_loss` takes.
        learned_within: r, the factor above and below the given weights within which they are learned; none
            keeps them.

    Raises:
        ValueError: there is no part, a name that no module can have, a weight that is not positive, or a
            factor that is not above 1.
    """

    last: dict[str, Tensor]
    """Value of each part, unweighted and without gradient, in the latest call; empty before it."""

    def __init__(
        self, parts: Mapping[str, tuple[float, nn.Module]], learned_within: float | None = None
    ) -> None:
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
        if learned_within is not None and not (isfinite(learned_within) and learned_within > 1):
            raise ValueError(f"learned_within={learned_within}: wanted a factor above 1, or null for none.")
        self.given_weights = {name: float(weight) for name, (weight, _) in parts.items()}
        self.learned_within = learned_within
        self.parts = nn.ModuleDict({name: as_metric_loss(loss) for name, (_, loss) in parts.items()})
        self.thetas = None if learned_within is None else nn.Parameter(torch.zeros(len(parts)))
        self.last = {}

    @property
    def weights(self) -> dict[str, float]:
        """Of each part, as they are now."""
        if self.thetas is None:
            return dict(self.given_weights)
        return dict(zip(self.parts, self._weights(self.thetas).tolist(), strict=True))

    def _weights(self, thetas: Tensor) -> Tensor:
        """θ → w, both `(parts,)`."""
        assert self.learned_within is not None
        given = thetas.new_tensor(list(self.given_weights.values()))
        return given * (log(self.learned_within) * thetas.tanh()).exp()

    def forward(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The weighted sum, a float32 scalar.

        Args:
            embeddings: `(B, d)` of any floating type.
            labels: `(B,)` int64 in 0..C-1.
            ids: `(B,)` int64; which image each embedding is of.
        """
        values = {name: part(embeddings, labels, ids) for name, part in self.parts.items()}
        self.last = {name: value.detach() for name, value in values.items()}
        if self.thetas is None:
            weighted = [self.given_weights[name] * value for name, value in values.items()]
            return sum(weighted[1:], weighted[0])
        weights = self._weights(self.thetas)
        logarithms = weights.log().sum()
        weighted_values = weights * torch.stack(list(values.values()))
        return weighted_values.sum() - (logarithms - logarithms.detach())


def weighted_sum(
    parts: Mapping[str, Callable[..., nn.Module]],
    weights: Mapping[str, float],
    learned_within: float | None = None,
    miners: Mapping[str, nn.Module | None] | None = None,
    *,
    num_classes: int,
    embedding_size: int,
) -> WeightedSum:
    """A weighted sum of losses that are made for a number of classes and dimensions.

    Args:
        parts: name → makes a loss from `num_classes` and `embedding_size`.
        weights: one for each of the parts.
        learned_within: see `WeightedSum`.
        miners: name of a part → the miner that it has in place of the one it was to be made with.
        num_classes: training classes, C.
        embedding_size: d.

    Raises:
        ValueError: parts and weights have different names, a miner is for no part, or a part or a weight is
            refused.
    """
    miners = miners or {}
    if set(parts) != set(weights):
        raise ValueError(f"weights are given for {sorted(weights)}, wanted one for each of {sorted(parts)}.")
    if unknown := sorted(set(miners) - set(parts)):
        raise ValueError(f"miners are given for {unknown}, wanted some of {sorted(parts)}.")
    own = {name: {"miner": miner} for name, miner in miners.items()}
    made = {
        name: (
            weights[name],
            make(num_classes=num_classes, embedding_size=embedding_size, **own.get(name, {})),
        )
        for name, make in parts.items()
    }
    return WeightedSum(made, learned_within)
