"""Learned representatives of the classes: how they start, and the losses that need more than a class name."""

from __future__ import annotations

from functools import partial

import torch
from pytorch_metric_learning.losses import SoftTripleLoss
from torch import Tensor, nn


def unit_length(weight: Tensor, dim: int) -> None:
    """Fill `weight` with random directions of length 1.

    The losses look only at a proxy's direction, and Adam moves each coordinate by about the learning rate.
    A proxy of length √d, as standard normal weights give, would turn √d times more slowly.

    Args:
        weight: the proxies, filled in place.
        dim: axis along which a proxy lies: 1 for `(C, d)`, 0 for `(d, C)`.
    """
    nn.init.normal_(weight)
    weight.data = nn.functional.normalize(weight.data, dim=dim)


def soft_triple(
    num_classes: int,
    embedding_size: int,
    *,
    centers_per_class: int,
    scale: float,
    gamma: float,
    margin: float,
    regularization: float,
) -> nn.Module:
    """SoftTriple with its regulariser (Qian et al. 2019, arXiv:1909.05235).

    Args:
        num_classes: C.
        embedding_size: d.
        centers_per_class: K.
        scale: λ, of the logits.
        gamma: γ, temperature of the soft choice among a class's centres.
        margin: δ.
        regularization: τ, weight of `center_spread`.
    """
    return SoftTripleLoss(
        num_classes=num_classes,
        embedding_size=embedding_size,
        centers_per_class=centers_per_class,
        la=scale,
        gamma=gamma,
        margin=margin,
        weight_regularizer=partial(center_spread, centers_per_class=centers_per_class),
        weight_reg_weight=regularization,
        weight_init_func=partial(unit_length, dim=0),
    )


def center_spread(centers: Tensor, centers_per_class: int) -> Tensor:
    r"""How far apart the centres of a class lie; as a penalty it merges those that a class does not need.

    .. math:: \frac{1}{C K (K - 1)} \sum_{c} \sum_{s < t} \sqrt{2 - 2\,w_{cs}^\top w_{ct}}

    Only centres of the same class are compared, so memory grows with C, not C².

    Args:
        centers: `(C · K, d)`, those of a class in consecutive rows.
        centers_per_class: K; with 1 the result is zero.
    """
    if centers_per_class == 1:
        return centers.sum() * 0
    grouped = nn.functional.normalize(centers).unflatten(0, (-1, centers_per_class))
    first, second = torch.triu_indices(centers_per_class, centers_per_class, offset=1, device=centers.device)
    cosines = (grouped[:, first] * grouped[:, second]).sum(dim=2)
    # The root has no gradient at zero, where merged centres lie.
    return (2 - 2 * cosines).clamp(min=1e-6).sqrt().mean() / 2
