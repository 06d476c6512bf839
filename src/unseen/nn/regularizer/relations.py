"""How a student's view of a batch differs from a teacher's: images relate alike, whatever the dimensions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Relation = Callable[[Tensor, Tensor], Tensor]
"""Student `(B, d)` and teacher `(B, D)` of the same images → scalar; the teacher gets no gradient."""


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Relational distillation of distances (Park et al. 2019, arXiv:1904.05068, "RKD-D").

    .. math:: \operatorname*{mean}_{i < j} \operatorname{huber}\left(
        \frac{\|s_i - s_j\|}{\mu_s} - \frac{\|t_i - t_j\|}{\mu_t}\right)

    with the mean distances μ of the batch, so that only the shape of the space counts, not its size.

    Args:
        student: s, `(B, d)`.
        teacher: t, `(B, D)`.
    """
    with torch.autocast(student.device.type, enabled=False):
        return functional.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def _relative_distances(vectors: Tensor) -> Tensor:
    """`(B, d)` → the distance of each pair by their mean, `(B (B − 1) / 2,)` float32."""
    vectors = vectors.float()
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1, device=vectors.device)
    lengths = vectors.square().sum(dim=1)
    squared = lengths[first] + lengths[second] - 2 * (vectors @ vectors.T)[first, second]
    # The root has no gradient at zero, where equal images lie.
    distance = squared.clamp(min=1e-12).sqrt()
    return distance / distance.mean().clamp(min=1e-6)


def similarities(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    r"""Distillation of each image's similarities to the batch (Roth et al. 2021, arXiv:2009.08348).

    .. math:: \frac{\tau^2}{B} \sum_i \operatorname{KL}\left(
        \operatorname{softmax}_j \frac{\cos(t_i, t_j)}{\tau} \,\Big\|\,
        \operatorname{softmax}_j \frac{\cos(s_i, s_j)}{\tau}\right)

    Args:
        student: s, `(B, d)`.
        teacher: t, `(B, D)`.
        temperature: τ.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: wanted a positive number.")
    with torch.autocast(student.device.type, enabled=False):
        found = (_cosines(student) / temperature).log_softmax(dim=1)
        wanted = (_cosines(teacher.detach()) / temperature).log_softmax(dim=1)
        divergence = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return divergence * temperature**2


def _cosines(vectors: Tensor) -> Tensor:
    """`(B, d)` → `(B, B)` float32."""
    directions = functional.normalize(vectors.float(), dim=1)
    return directions @ directions.T
