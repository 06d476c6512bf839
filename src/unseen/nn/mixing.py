"""Mixtures of embeddings, which are embeddings again."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mixed(one: Tensor, other: Tensor, share: float, normalize: bool) -> Tensor:
    """`μ e + (1 − μ) e'`, brought to length 1 where embeddings have it.

    Args:
        one: e, `(N, d)`.
        other: e', `(N, d)`.
        share: μ.
        normalize: whether embeddings have length 1.
    """
    mixture = share * one + (1 - share) * other
    return functional.normalize(mixture, dim=1) if normalize else mixture
