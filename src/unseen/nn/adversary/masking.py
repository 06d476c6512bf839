"""Masking: the channels with the clearest class evidence are silenced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unseen.nn.adversary.contract import AdversaryInput
from unseen.nn.adversary.spoiling import SpoilingAdversary

Evidence = Callable[[Tensor, Tensor], Tensor]
"""Features `(B, D)` and the gradient of the own class's logit at them → evidence of each channel, `(B,
D)`."""


def of_class(features: Tensor, gradient: Tensor) -> Tensor:
    """What a channel contributes to the logit of the own class, to first order: `f_d ∂logit_y/∂f_d`."""
    return features * gradient


def of_chance(features: Tensor, gradient: Tensor) -> Tensor:
    """The control: random channels."""
    return torch.rand_like(features)


class EvidenceMasking(SpoilingAdversary):
    """The channels that speak most for the own class are silenced (after Huang et al. 2020, arXiv:2007.02454,
    section 3.2, who mask the gradient's largest parts for classification).

    Args:
        share: of the channels that are set to zero, in each image.
        evidence: by which they are chosen; the control is `of_chance`.
        settings: of `ClassAdversary`; its strength is β. It must see the fused features.

    Raises:
        ValueError: `share` is outside (0, 1), or it sees the embedding.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, share: float, evidence: Evidence, **settings: Any
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        if not 0 < share < 1:
            raise ValueError(f"share={share}: wanted a share of the channels in (0, 1).")
        if self.sees != "fused":
            raise ValueError(f"sees={self.sees!r}: an adversary that masks channels sees 'fused' features.")
        self.share = share
        self.evidence = evidence

    def spoiled(self, batch: AdversaryInput, features: Tensor) -> Tensor:
        """The embedding of features whose clearest evidence is gone."""
        labels = batch.labels.unsqueeze(1)
        gradient = self.gradient(lambda logits: logits.gather(1, labels).sum(), features)
        evidence = self.evidence(features.detach(), gradient)
        count = max(1, round(self.share * features.shape[1]))
        silenced = evidence.topk(count, dim=1).indices
        return batch.embedder.embed_features(features.scatter(1, silenced, 0.0))
