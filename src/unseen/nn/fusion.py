"""Feature maps of several layers → one feature vector (general discriminative features, GDFL).

Equations as in the code that the third author of Al-Kaabi et al. (2022) published with a later work. With
`u = GAP(final map)` and taps projected to `M_l`, `(C, H_l, W_l)`:
`a_l = softmax_i c_l(i)`, `p_l = Σ_i a_l(i) M_l(i)`, `f = [p_1; …; p_L]`. Fusions differ in the score `c_l`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unseen.nn.backbone import FeatureMaps

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Positions `(B, C, P)`, query `(B, C, 1)` and weights `(C,)` → scores `(B, P)`."""


class Fused(NamedTuple):
    """What a fusion gives for `B` images.

    Args:
        features: `(B, D)`.
        attention: for each tap `(B, H_l, W_l)`, summing to 1 over positions; empty without attention.
        positions: of each tap what was pooled, `(B, C, P_l)`; the pooled vectors, joined, are the features.
            Empty for a fusion that does not pool.
        scores: of each tap `(B, P_l)`, whose softmax weighs the positions; zero where all weigh the same.
    """

    features: Tensor
    attention: list[Tensor]
    positions: Sequence[Tensor] = ()
    scores: Sequence[Tensor] = ()


def pooled_by(positions: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """`p = Σ_i a(i) M(i)` with `a = softmax(c)`.

    Args:
        positions: M, `(B, C, P)`.
        scores: c, `(B, P)`.

    Returns:
        p `(B, C)` and a `(B, P)`.
    """
    attention = scores.softmax(dim=1)
    return torch.einsum("bcp,bp->bc", positions, attention), attention


def additive_score(positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """`w^T (M(i) + u)`, as published. `w^T u` is the same at every position: softmax cancels the query."""
    return torch.einsum("bcp,c->bp", positions + query, weights)


def tanh_score(positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """`w^T tanh(M(i) + u)` (Bahdanau et al. 2015): the query matters."""
    return torch.einsum("bcp,c->bp", torch.tanh(positions + query), weights)


def dot_score(positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """`⟨w ∘ M(i), u⟩ / √C`: the dot-product compatibility of Jetley et al. (2018), with learned weights."""
    return torch.einsum("bcp,bc->bp", positions, weights * query.squeeze(2)) / positions.shape[1] ** 0.5


class LastMap(nn.Module):
    """The plain baseline: `f = GAP(final map)`, so `D = C`.

    Args:
        tap_channels: channels of the taps; not used.
        final_channels: channels of the final map, C.
    """

    def __init__(self, tap_channels: Sequence[int], final_channels: int) -> None:
        super().__init__()
        self.out_features = final_channels

    def forward(self, maps: FeatureMaps) -> Fused:
        """`final (B, C, H, W)` → features `(B, C)`."""
        positions = maps.final.flatten(2)
        return Fused(maps.final.mean((2, 3)), [], [positions], [_alike(positions)])


class PooledTaps(nn.Module):
    """Several layers without attention: `f = [GAP(M_1); …; GAP(M_L)]`, so `D = L·C`.

    Args:
        tap_channels: channels of the taps, `C_1 … C_L`.
        final_channels: channels of the final map, C.
    """

    def __init__(self, tap_channels: Sequence[int], final_channels: int) -> None:
        super().__init__()
        self.projections = projections(tap_channels, final_channels)
        self.out_features = len(tap_channels) * final_channels

    def forward(self, maps: FeatureMaps) -> Fused:
        """Taps `(B, C_l, H_l, W_l)` → features `(B, L·C)`."""
        positions = _projected(self.projections, maps.taps)
        features = torch.cat([tap.mean(2) for tap in positions], dim=1)
        return Fused(features, [], positions, [_alike(tap) for tap in positions])


class AttentionFusion(nn.Module):
    """Several layers, each pooled by attention whose query is the pooled final map; `D = L·C`.

    The attention vectors start at zero, where every score is the same and attention is the mean: training
    departs from `PooledTaps` instead of from a random selection of positions.

    Args:
        tap_channels: channels of the taps, `C_1 … C_L`.
        final_channels: channels of the final map, C.
        score: how a position and the query are compared.
        per_tap: each tap has a `w` of its own; else one is shared by all, as published.
        jitter: standard deviation of normal noise that is added to the scores in training: a regulariser of
            the attention; 0 for none.

    Raises:
        ValueError: there is no tap, or `jitter` is negative.
    """

    def __init__(
        self,
        tap_channels: Sequence[int],
        final_channels: int,
        *,
        score: Score,
        per_tap: bool,
        jitter: float,
    ) -> None:
        super().__init__()
        if not jitter >= 0:
            raise ValueError(f"fusion.jitter={jitter}: a standard deviation is not negative.")
        self.projections = projections(tap_channels, final_channels)
        self.weights = nn.Parameter(torch.zeros(len(tap_channels) if per_tap else 1, final_channels))
        self.score = score
        self.jitter = jitter
        self.out_features = len(tap_channels) * final_channels

    def forward(self, maps: FeatureMaps) -> Fused:
        """Taps `(B, C_l, H_l, W_l)`, final map `(B, C, H, W)` → features `(B, L·C)` and L attention maps."""
        query = maps.final.mean((2, 3)).unsqueeze(2)
        weights = self.weights.expand(len(maps.taps), -1)
        positions = _projected(self.projections, maps.taps)
        scores = [self._scores(tap, query, weight) for tap, weight in zip(positions, weights, strict=True)]
        pooled = [pooled_by(*tap) for tap in zip(positions, scores, strict=True)]
        attention = [
            weighing.unflatten(1, tap.shape[2:]) for (_, weighing), tap in zip(pooled, maps.taps, strict=True)
        ]
        return Fused(torch.cat([features for features, _ in pooled], dim=1), attention, positions, scores)

    def _scores(self, positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
        scores = self.score(positions, query, weights)
        if not self.training or self.jitter == 0:
            return scores
        return scores + self.jitter * torch.randn_like(scores)


def projections(tap_channels: Sequence[int], final_channels: int) -> nn.ModuleList:
    """A 1×1 convolution without bias for each tap; a tap that already has C channels is not projected.

    Raises:
        ValueError: there is no tap.
    """
    if not tap_channels:
        raise ValueError("This fusion needs at least one tap; backbone.taps is empty. Or choose fusion=last.")
    return nn.ModuleList(
        nn.Identity() if channels == final_channels else nn.Conv2d(channels, final_channels, 1, bias=False)
        for channels in tap_channels
    )


def _projected(project: nn.ModuleList, taps: Sequence[Tensor]) -> list[Tensor]:
    """`(B, C_l, H_l, W_l)` of each tap → `(B, C, P_l)`."""
    return [one(tap).flatten(2) for one, tap in zip(project, taps, strict=True)]


def _alike(positions: Tensor) -> Tensor:
    """The scores `(B, P)` of positions `(B, C, P)` that all weigh the same."""
    return positions.new_zeros(positions.shape[0], positions.shape[2])
