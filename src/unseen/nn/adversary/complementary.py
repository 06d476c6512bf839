"""Complementary evidence: features without the clearest evidence for a class must tell the class too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unseen.nn.adversary.gradients import GradientAdversary
from unseen.nn.adversary.masking import Evidence, checked_share, contributions, without_strongest


class ComplementaryEvidence(GradientAdversary):
    """The channels that speak most for the own class are silenced, and the features descend the cross entropy
    that the head has without them (after Zhang et al. 2018, arXiv:1804.06962, section 3.2, who erase regions
    of a map and train a second classifier on what is left).

    `EvidenceMasking` asks the metric loss to hold without them. Of pairs, whose two images lose different
    channels, that is hard to ask; the head sees each image alone, so this form is the same with any loss.

    Args:
        evidence: of each channel, by which the silenced are chosen; see `unseen.nn.adversary.masking`.
        share: of the channels that are silenced, in each image.
        settings: of `GradientAdversary`. It must see the fused features.

    Raises:
        ValueError: `share` is outside (0, 1), or it sees the embedding.
    """

    sees_only = "fused"

    def __init__(
        self, in_features: int, num_classes: int, *, evidence: Evidence, share: float, **settings: Any
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        self.evidence, self.share = evidence, checked_share(share)

    def direction(self, features: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the cross entropy at the channels that are left."""
        evidence = self.evidence(features.detach(), labels, contributions(self, features))
        kept = without_strongest(evidence, self.share)
        return kept * self.gradient(self._doubt(labels), features.detach() * kept)
