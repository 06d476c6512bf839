"""Binomial deviance over pairs (Yi et al. 2014, arXiv:1407.4979), which pytorch-metric-learning lacks."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses.generic_pair_loss import GenericPairLoss
from pytorch_metric_learning.utils.loss_and_miner_utils import neg_pairs_from_tuple, pos_pairs_from_tuple
from torch import Tensor
from torch.nn.functional import softplus


class BinomialDevianceLoss(GenericPairLoss):
    r"""Mean over positive plus mean over negative pairs of a logistic loss of the cosine similarity $s$.

    .. math:: \ln(1 + e^{-\alpha(s_{ij} - \beta)}) \text{ for } y_i = y_j, \qquad
              \ln(1 + e^{\alpha C (s_{ij} - \beta)}) \text{ for } y_i \ne y_j

    In the form of Ustinova & Lempitsky 2016, arXiv:1611.00822, section 4.

    Args:
        alpha: α, steepness.
        beta: β, similarity at which a pair is neither right nor wrong.
        negative_cost: C, how much steeper the loss of a negative pair is.
    """

    def __init__(self, alpha: float, beta: float, negative_cost: float) -> None:
        super().__init__(mat_based_loss=False)
        self.alpha = alpha
        self.beta = beta
        self.negative_cost = negative_cost

    def _compute_loss(
        self, positive: Tensor, negative: Tensor, indices: tuple[Tensor, ...]
    ) -> dict[str, Any]:
        # A side without pairs arrives as an empty list and counts as zero.
        positive_loss = softplus(-self.alpha * (positive - self.beta)) if len(positive) else 0
        negative_loss = (
            softplus(self.alpha * self.negative_cost * (negative - self.beta)) if len(negative) else 0
        )
        return {
            "pos_loss": _part(positive_loss, pos_pairs_from_tuple(indices), "pos_pair"),
            "neg_loss": _part(negative_loss, neg_pairs_from_tuple(indices), "neg_pair"),
        }

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]

    def get_default_distance(self) -> CosineSimilarity:
        """Cosine similarity."""
        return CosineSimilarity()


def _part(losses: Tensor | int, indices: tuple[Tensor, ...], kind: str) -> dict[str, Any]:
    return {"losses": losses, "indices": indices, "reduction_type": kind}
