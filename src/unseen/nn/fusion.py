"""Feature maps of several layers → one feature vector (general discriminative features, GDFL).

Equations as in the code that the third author of Al-Kaabi et al. (2022) published with a later work. With
`u = GAP(final map)` and taps `X_l` projected to `M_l = W_l X_l`, `(C, H_l, W_l)`:
`a_l = softmax_i c_l(i)`, `p_l = Σ_i a_l(i) M_l(i)`, `f = [p_1; …; p_L]`. Fusions differ in the score `c_l`.
A projection is linear, so pooled vectors are projected instead of maps: `p_l = W_l Σ_i a_l(i) X_l(i)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unseen.nn.backbone import FeatureMaps

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Positions `(B, C, P)`, query `(B, C, 1)` and weights `(C,)` → scores `(B, P)`."""
Key = Callable[[Tensor, Tensor], Tensor]
"""Query `(B, C, 1)` and weights `(C,)` → k, `(B, C)`."""
Projection = Callable[[Tensor], Tensor]
"""A pooled vector of a tap `(B, C_l)` → its part of the features `(B, C)`."""


class Fused(NamedTuple):
    """What a fusion gives for `B` images.

    Args:
        features: `(B, D)`.
        attention: for each tap `(B, H_l, W_l)`, summing to 1 over positions; empty without attention.
        positions: of each tap what was pooled, `(B, C_l, P_l)`. Empty for a fusion that does not pool.
        scores: of each tap `(B, P_l)`, whose softmax weighs the positions; zero where all weigh the same.
        projections: of each tap, applied to what was pooled; C is the same for all. Empty where the pooled
            vectors, joined, are the features.
    """

    features: Tensor
    attention: list[Tensor]
    positions: Sequence[Tensor] = ()
    scores: Sequence[Tensor] = ()
    projections: Sequence[Projection] = ()

    @property
    def channels(self) -> list[int]:
        """How many of the features are each tap's, in their order; empty for a fusion that does not pool."""
        if not self.projections:
            return [positions.shape[1] for positions in self.positions]
        return [self.features.shape[1] // len(self.projections)] * len(self.projections)

    def pooled_by(self, scores: Sequence[Tensor]) -> Tensor:
        """What the features would be, `(B, D)`, if each tap had other scores `(B, P_l)`."""
        pooled = [pooled_by(*tap)[0] for tap in zip(self.positions, scores, strict=True)]
        if self.projections:
            pooled = [project(part) for project, part in zip(self.projections, pooled, strict=True)]
        return torch.cat(pooled, dim=1)


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


def linear(key: Key) -> Callable[[Score], Score]:
    """Marks a score that is linear in the position: `c(i) = ⟨k, M(i)⟩ + c_0`, with k of query and weights.

    Of projected positions `M(i) = W X(i)` it is `⟨Wᵀ k, X(i)⟩ + c_0`: the map need not be projected.
    """

    def mark(score: Score) -> Score:
        score.key = key  # type: ignore[attr-defined]
        return score

    return mark


def _additive_key(query: Tensor, weights: Tensor) -> Tensor:
    return weights.expand(len(query), -1)


def _dot_key(query: Tensor, weights: Tensor) -> Tensor:
    return weights * query.squeeze(2) / query.shape[1] ** 0.5


@linear(_additive_key)
def additive_score(positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """`w^T (M(i) + u)`, as published. `w^T u` is the same at every position: softmax cancels the query."""
    return torch.einsum("bcp,c->bp", positions + query, weights)


def tanh_score(positions: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """`w^T tanh(M(i) + u)` (Bahdanau et al. 2015): the query matters."""
    return torch.einsum("bcp,c->bp", torch.tanh(positions + query), weights)


@linear(_dot_key)
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
        project = _of_vectors(self.projections)
        means = [one(tap.mean((2, 3))) for one, tap in zip(project, maps.taps, strict=True)]
        positions = [tap.flatten(2) for tap in maps.taps]
        scores = [_alike(tap) for tap in positions]
        return Fused(torch.cat(means, dim=1), [], positions, scores, project)


class Attention(nn.Module, ABC):
    """Several layers, each pooled by attention whose query is the pooled final map; `D = L·C`.

    Pooling comes before the projection, which is linear: `Σ_i a(i) W X(i) = W Σ_i a(i) X(i)`.

    The attention vectors start at zero, where every score is the same and attention is the mean: training
    departs from `PooledTaps` instead of from a random selection of positions.

    Args:
        tap_channels: channels of the taps, `C_1 … C_L`.
        final_channels: channels of the final map, C.
        size: of an attention vector w.
        per_tap: each tap has a `w` of its own; else one is shared by all, as published.
        jitter: standard deviation of normal noise that is added to the scores in training: a regulariser of
            the attention; 0 for none.

    Raises:
        ValueError: there is no tap, or `jitter` is negative.
    """

    def __init__(
        self, tap_channels: Sequence[int], final_channels: int, *, size: int, per_tap: bool, jitter: float
    ) -> None:
        super().__init__()
        if not jitter >= 0:
            raise ValueError(f"fusion.jitter={jitter}: a standard deviation is not negative.")
        self.projections = projections(tap_channels, final_channels)
        self.weights = nn.Parameter(torch.zeros(len(tap_channels) if per_tap else 1, size))
        self.jitter = jitter
        self.out_features = len(tap_channels) * final_channels

    def forward(self, maps: FeatureMaps) -> Fused:
        """Taps `(B, C_l, H_l, W_l)`, final map `(B, C, H, W)` → features `(B, L·C)` and L attention maps."""
        query = maps.final.mean((2, 3)).unsqueeze(2)
        weights = self.weights.expand(len(maps.taps), -1)
        scores = [self._jittered(self.scores(tap, maps.taps[tap], query, w)) for tap, w in enumerate(weights)]
        positions = [tap.flatten(2) for tap in maps.taps]
        pooled = [pooled_by(*tap) for tap in zip(positions, scores, strict=True)]
        project = _of_vectors(self.projections)
        features = [one(vector) for one, (vector, _) in zip(project, pooled, strict=True)]
        attention = [
            weighing.unflatten(1, tap.shape[2:]) for (_, weighing), tap in zip(pooled, maps.taps, strict=True)
        ]
        return Fused(torch.cat(features, dim=1), attention, positions, scores, project)

    @abstractmethod
    def scores(self, index: int, tap: Tensor, query: Tensor, weights: Tensor) -> Tensor:
        """Of the positions of a tap, before jitter, `(B, H_l·W_l)`.

        Args:
            index: of the tap, from 0.
            tap: `(B, C_l, H_l, W_l)`.
            query: u, `(B, C, 1)`.
            weights: w of this tap, `(size,)`.
        """

    def _jittered(self, scores: Tensor) -> Tensor:
        if not self.training or self.jitter == 0:
            return scores
        return scores + self.jitter * torch.randn_like(scores)


class AttentionFusion(Attention):
    """Attention by a score of the projected positions; maps are projected for a score that is not `linear`.

    Args:
        tap_channels: channels of the taps, `C_1 … C_L`.
        final_channels: channels of the final map, C.
        score: how a position and the query are compared.
        per_tap: see `Attention`.
        jitter: see `Attention`.

    Raises:
        ValueError: see `Attention`.
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
        super().__init__(tap_channels, final_channels, size=final_channels, per_tap=per_tap, jitter=jitter)
        self.score = score
        # Hydra gives a partial object of the function.
        self.key: Key | None = getattr(getattr(score, "func", score), "key", None)

    def scores(self, index: int, tap: Tensor, query: Tensor, weights: Tensor) -> Tensor:
        """See `Attention.scores`."""
        project = self.projections[index]
        if self.key is None:
            return self.score(project(tap).flatten(2), query, weights)
        key = self.key(query, weights)
        folded = key @ project.weight.flatten(1) if isinstance(project, nn.Conv2d) else key
        constant = self.score(torch.zeros_like(query), query, weights)
        return torch.einsum("bcp,bc->bp", tap.flatten(2), folded) + constant


class LowRankAttention(Attention):
    """Attention of few dimensions: `c_l(i) = C/r · w^T tanh(K_l X_l(i) + Q u)`, keys and query of rank r.

    As `tanh_score`, in which the query matters, without a map of C channels: for r ≪ C it costs little more
    than `PooledTaps`. An optimiser that moves each entry of w equally far, as Adam does, moves a sum of r
    terms r/C as far as one of C: hence the factor, without which attention departs from the mean too slowly.

    Args:
        tap_channels: channels of the taps, `C_1 … C_L`.
        final_channels: channels of the final map, C.
        rank: r.
        per_tap: see `Attention`.
        jitter: see `Attention`.

    Raises:
        ValueError: see `Attention`; or the rank is below 1.
    """

    def __init__(
        self, tap_channels: Sequence[int], final_channels: int, *, rank: int, per_tap: bool, jitter: float
    ) -> None:
        if rank < 1:
            raise ValueError(f"fusion.rank={rank}: wanted at least 1.")
        super().__init__(tap_channels, final_channels, size=rank, per_tap=per_tap, jitter=jitter)
        self.keys = nn.ModuleList(nn.Conv2d(channels, rank, 1, bias=False) for channels in tap_channels)
        self.query = nn.Linear(final_channels, rank, bias=False)
        self.scale = final_channels / rank

    def scores(self, index: int, tap: Tensor, query: Tensor, weights: Tensor) -> Tensor:
        """See `Attention.scores`."""
        keys = self.keys[index](tap).flatten(2)
        return self.scale * tanh_score(keys, self.query(query.squeeze(2)).unsqueeze(2), weights)


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


def _of_vectors(projections: nn.ModuleList) -> list[Projection]:
    """The projections of maps, as functions of pooled vectors."""
    return [partial(_of_vector, project) for project in projections]


def _of_vector(project: nn.Module, vector: Tensor) -> Tensor:
    """`(B, C_l)` → `(B, C)`, as a map of one position."""
    projected: Tensor = project(vector[:, :, None, None])
    return projected.flatten(1)


def _alike(positions: Tensor) -> Tensor:
    """The scores `(B, P)` of positions `(B, C, P)` that all weigh the same."""
    return positions.new_zeros(positions.shape[0], positions.shape[2])
