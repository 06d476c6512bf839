"""Adversarial attention: it moves to where the class evidence is weak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unseen.nn.adversary.contract import AdversaryInput, entropy
from unseen.nn.adversary.spoiling import SpoilingAdversary
from unseen.nn.fusion import Fused

Direction = Callable[[Tensor], Tensor]
"""Gradients at the scores of a tap, `(B, P)` over its positions → where the scores go, `(B, P)`."""


def toward_confusion(gradient: Tensor) -> Tensor:
    """As the adversary wants: towards positions whose class the head does not know."""
    return gradient


def shuffled(gradient: Tensor) -> Tensor:
    """The control: the adversary's values, at random positions of their tap."""
    order = torch.rand_like(gradient).argsort(dim=1)
    return gradient.gather(1, order)


def noise(gradient: Tensor) -> Tensor:
    """The control that knows nothing but how much: normal, as large as the adversary's values in each tap."""
    size = gradient.square().mean(dim=1, keepdim=True).sqrt()
    return size * torch.randn_like(gradient)


class AdversarialAttention(SpoilingAdversary):
    """Attention moves to where the class evidence is weak (the idea of Shen et al. 2019, arXiv:1903.10225).

    With H the entropy of the head's posterior: `ĝ_l = ∂H/∂c_l` at the scores of tap l, without a graph,
    scaled to max |ĝ| = 1 over all positions of an image; `a'_l = softmax(c_l + η ĝ_l)`, `p'_l = Σ_i a'_l(i)
    M_l(i)`. Where there is no attention, scores are zero and pooling by `a'` replaces the mean. No second
    pass of the backbone.

    Args:
        step: η.
        direction: from ĝ to where the scores go; the controls are `shuffled` and `noise`.
        settings: of `ClassAdversary`; its strength is β. It must see the fused features.

    Raises:
        ValueError: `step` is not positive, or it sees the embedding.
    """

    sees_only = "fused"
    sees_positions = True

    def __init__(
        self, in_features: int, num_classes: int, *, step: float, direction: Direction, **settings: Any
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        if not step > 0:
            raise ValueError(f"step={step}: attention moves by a positive step η.")
        self.step = step
        self.direction = direction

    def check(self, batch: AdversaryInput) -> None:
        """The fusion tells what it pooled."""
        if not batch.embedded.fused.positions:
            raise ValueError(
                "This fusion pools no positions, so an adversary of the attention has nothing to move: let "
                "it give `positions` and `scores`, or choose adversary=masking."
            )

    def spoiled(self, batch: AdversaryInput, features: Tensor) -> Tensor:
        """The embedding of features that are pooled where the head is unsure."""
        fused = batch.embedded.fused
        sizes = [scores.shape[1] for scores in fused.scores]
        gradient = at_scores(self.gradient(entropy, features), fused)
        # Tap by tap, so that controls move each tap as much as the adversary does.
        moved = torch.cat([self.direction(part) for part in gradient.split(sizes, dim=1)], dim=1)
        moved = moved / moved.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        pairs = zip(fused.scores, moved.split(sizes, dim=1), strict=True)
        scores = [score + self.step * part for score, part in pairs]
        return batch.embedder.embed_features(fused.pooled_by(scores))


def at_scores(gradient: Tensor, fused: Fused) -> Tensor:
    """The chain rule from features to the scores of every tap; without a graph.

    `∂H/∂c_l(i) = a_l(i) (⟨g_l, M_l(i)⟩ − ⟨g_l, p_l⟩)`, for `g_l = ∂H/∂p_l`.

    Args:
        gradient: `(B, D)`, of H at the fused features.
        fused: with positions and scores `(B, P_l)` of each tap.

    Returns:
        `(B, Σ P_l)` float32.
    """
    with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
        scores = [scores.detach().float().requires_grad_() for scores in fused.scores]
        constant = fused._replace(positions=[positions.detach().float() for positions in fused.positions])
        return torch.cat(torch.autograd.grad(constant.pooled_by(scores), scores, gradient), dim=1)
