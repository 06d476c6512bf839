"""Masking: the channels, or the tap, with the clearest class evidence are silenced."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, ClassAdversary
from unseen.nn.adversary.spoiling import SpoilingAdversary


class Contribution(Protocol):
    """What the channels of a batch contribute to the head's logits, to first order."""

    def __call__(self, classes: Tensor) -> Tensor:
        """Of each image's class, `(B,)` int64: `f_d ∂logit_c/∂f_d` at its own features, `(B, D)`."""


Evidence = Callable[[Tensor, Tensor, Contribution], Tensor]
"""Features `(B, D)`, labels `(B,)` and contributions → evidence of each channel, `(B, D)`."""


def of_class(features: Tensor, labels: Tensor, contribution: Contribution) -> Tensor:
    """What a channel contributes to the logit of the own class."""
    return contribution(labels)


def of_other_class(features: Tensor, labels: Tensor, contribution: Contribution) -> Tensor:
    """The closest control: what it contributes to the logit of another class of the batch, drawn for each
    image; of the own where there is no other."""
    differ = labels[:, None] != labels[None, :]
    alone = ~differ.any(dim=1, keepdim=True)
    return contribution(labels[torch.multinomial((differ | alone).float(), 1).squeeze(1)])


def of_size(features: Tensor, labels: Tensor, contribution: Contribution) -> Tensor:
    """The control that silences most: the size of the channel, whatever it speaks for."""
    return features.abs()


def of_chance(features: Tensor, labels: Tensor, contribution: Contribution) -> Tensor:
    """The control that looks at nothing: random channels."""
    return torch.rand_like(features)


def contributions(adversary: ClassAdversary, features: Tensor) -> Contribution:
    """Those of features `(B, D)` to the logits of an adversary's head, as it is now."""

    def of(classes: Tensor) -> Tensor:
        chosen = classes.unsqueeze(1)
        gradient = adversary.gradient(lambda logits: logits.gather(1, chosen).sum(), features)
        return features.detach() * gradient

    return of


def without_strongest(evidence: Tensor, share: float) -> Tensor:
    """1 for what is kept, 0 for the share of the channels with most evidence in each image, `(B, D)`."""
    count = max(1, round(share * evidence.shape[1]))
    return torch.ones_like(evidence).scatter(1, evidence.topk(count, dim=1).indices, 0.0)


def checked_share(share: float) -> float:
    """A share of the channels to silence.

    Raises:
        ValueError: it is outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: wanted a share of the channels in (0, 1).")
    return share


class _Masking(SpoilingAdversary):
    """Embeds features of which the adversary has silenced a part.

    Args:
        evidence: of each channel, by which the part is chosen; controls are `of_other_class`, `of_size` and
            `of_chance`.
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
        evidence = self.evidence(features.detach(), batch.labels, contributions(self, features))
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
        self.share = checked_share(share)

    def kept(self, batch: AdversaryInput, evidence: Tensor) -> Tensor:
        """All but the channels with most evidence."""
        return without_strongest(evidence, self.share)


class TapMasking(_Masking):
    """The whole tap that speaks most for the own class is silenced: the metric loss must hold on the others.

    It joins the two ideas of the method: what several layers know is worth most where none of them is needed
    alone.

    Args:
        settings: of `_Masking` and `ClassAdversary`.

    Raises:
        ValueError: it sees the embedding; in training, the fusion has fewer than two taps.
    """

    def check(self, batch: AdversaryInput) -> None:
        """There is a tap beside the silenced one."""
        if (taps := len(batch.embedded.fused.channels)) < 2:
            raise ValueError(
                f"adversary=taps silences one tap, but this fusion has {taps}: choose a fusion of "
                "several layers, or adversary=masking."
            )

    def kept(self, batch: AdversaryInput, evidence: Tensor) -> Tensor:
        """All but the tap with most evidence in each image, the mean over its channels of what they give."""
        channels = batch.embedded.fused.channels
        of_taps = torch.stack([part.mean(dim=1) for part in evidence.split(channels, dim=1)], dim=1)
        silenced = functional.one_hot(of_taps.argmax(dim=1), len(channels)).to(evidence.dtype)
        sizes = torch.tensor(channels, device=evidence.device)
        return 1 - silenced.repeat_interleave(sizes, dim=1)
