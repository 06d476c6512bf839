"""Masking: the channels, or the tap, with the clearest class evidence are silenced."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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


def of_another(features: Tensor, gradient: Tensor) -> Tensor:
    """The closer control: what channels contribute to the logit of another image's class."""
    return features * gradient[torch.randperm(len(gradient), device=gradient.device)]


class _Masking(SpoilingAdversary):
    """Embeds features of which the adversary has silenced a part.

    Args:
        evidence: of each channel, by which the part is chosen; controls are `of_chance` and `of_another`.
        settings: of `ClassAdversary`; its strength is β. It must see the fused features.

    Raises:
        ValueError: it sees the embedding.
    """

    sees_only = "fused"

    def __init__(self, in_features: int, num_classes: int, *, evidence: Evidence, **settings: Any) -> None:
        super().__init__(in_features, num_classes, **settings)
        self.evidence = evidence

    def spoiled(self, batch: AdversaryInput, features: Tensor) -> Tensor:
        """The embedding of features whose clearest evidence is gone."""
        labels = batch.labels.unsqueeze(1)
        gradient = self.gradient(lambda logits: logits.gather(1, labels).sum(), features)
        evidence = self.evidence(features.detach(), gradient)
        return batch.embedder.embed_features(features * self.kept(batch, evidence))

    @abstractmethod
    def kept(self, batch: AdversaryInput, evidence: Tensor) -> Tensor:
        """Evidence `(B, D)` → 1 for what is kept, 0 for what is silenced, `(B, D)`."""


class EvidenceMasking(_Masking):
    """The channels that speak most for the own class are silenced (after Huang et al. 2020, arXiv:2007.02454,
    section 3.2, who mask the gradient's largest parts for classification).

    Args:
        share: of the channels that are set to zero, in each image.
        settings: of `_Masking` and `ClassAdversary`.

    Raises:
        ValueError: `share` is outside (0, 1), or it sees the embedding.
    """

    def __init__(self, in_features: int, num_classes: int, *, share: float, **settings: Any) -> None:
        super().__init__(in_features, num_classes, **settings)
        if not 0 < share < 1:
            raise ValueError(f"share={share}: wanted a share of the channels in (0, 1).")
        self.share = share

    def kept(self, batch: AdversaryInput, evidence: Tensor) -> Tensor:
        """All but the channels with most evidence."""
        count = max(1, round(self.share * evidence.shape[1]))
        return torch.ones_like(evidence).scatter(1, evidence.topk(count, dim=1).indices, 0.0)


class TapMasking(_Masking):
    """The whole tap that speaks most for the own class is silenced: the metric loss must hold on the others.

    It joins the two ideas of the method: what several layers know is worth most where none of them is needed
    alone.

    Args:
        settings: of `_Masking` and `ClassAdversary`.

    Raises:
        ValueError: it sees the embedding; in training, the fusion has fewer than two taps.
    """

    def kept(self, batch: AdversaryInput, evidence: Tensor) -> Tensor:
        """All but the tap with most evidence in each image, the mean over its channels of what they give."""
        channels = batch.embedded.fused.channels
        if len(channels) < 2:
            raise ValueError(
                f"adversary=taps silences one tap, but this fusion has {len(channels)}: choose a fusion of "
                "several layers, or adversary=masking."
            )
        of_taps = torch.stack([part.mean(dim=1) for part in evidence.split(channels, dim=1)], dim=1)
        silenced = functional.one_hot(of_taps.argmax(dim=1), len(channels)).to(evidence.dtype)
        sizes = torch.tensor(channels, device=evidence.device)
        return 1 - silenced.repeat_interleave(sizes, dim=1)
