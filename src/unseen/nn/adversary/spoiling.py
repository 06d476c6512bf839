"""Adversaries that spoil the embedding and ask the same metric loss to hold: `(1 − β) L(e) + β L(e')`."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from unseen.nn.adversary.contract import AdversaryInput, ClassAdversary


class SpoilingAdversary(ClassAdversary):
    """`L(e) + β (L(e') − L(e))`, β the strength: `e'` embeds the same images, less the evidence for their
    class.

    Each form has controls that spoil as many channels, taps, directions or positions, chosen without the
    class: a gain that those match is regularisation, and not the adversary's.
    """

    @property
    def replaced(self) -> float:
        """β."""
        return self._strength(1.0)

    @abstractmethod
    def spoiled(self, batch: AdversaryInput, features: Tensor) -> Tensor:
        """`e'`, `(B, d)`, with its graph."""

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """β (L(e') − L(e))."""
        return strength * (batch.metric(self.spoiled(batch, features)) - batch.metric_loss)
