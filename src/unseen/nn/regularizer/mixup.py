"""Embeddings between those of two classes, which belong to both in part (after Metrix)."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.nn.embedder import Embedder
from unseen.nn.mixing import mixed
from unseen.nn.regularizer.contract import MakeLoss, Regularizer, RegularizerInput, check_strength


class EmbeddingMixup(Regularizer):
    r"""Mixing embeddings and labels in the batch, for any metric loss.

    Each embedding is mixed with a random one of another class, `v = norm(μ e + (1 − μ) e')`, μ drawn from
    Beta(α, α) in each step. With y' the labels of the others, the loss of embeddings and mixtures is

    .. math:: L_{mix} = \mu\, L([e; v], [y; y]) + (1 - \mu)\, L([e; v], [y; y'])

    and the metric loss becomes `(1 − β) L + β L_mix`. A loss that is a sum over pairs or over images thereby
    has interpolated labels: a mixture is to μ a positive and to 1 − μ a negative of its first class, which is
    Metrix at the embeddings (Venkataramanan et al. 2022, arXiv:2106.04990), and cross entropy
    has its soft target. Other losses, whose pairs stand within a logarithm, are interpolated from outside.

    Unlike `adversary=virtual`, which gives mixtures a class of their own, it invents no class.

    Args:
        embedder: not used.
        loss: not used.
        strength: β, at most 1.
        concentration: α.

    Raises:
        ValueError: β is outside (0, 1], or α is not positive.
    """

    def __init__(self, embedder: Embedder, loss: MakeLoss, *, strength: float, concentration: float) -> None:
        super().__init__()
        check_strength(strength)
        if strength > 1:
            raise ValueError(f"regularizer.strength={strength}: the share of the mixed loss is at most 1.")
        if not concentration > 0:
            raise ValueError(f"regularizer.concentration={concentration}: wanted a positive number.")
        self.strength = strength
        self.share = torch.distributions.Beta(concentration, concentration)

    @property
    def replaced(self) -> float:
        """β."""
        return self.strength

    def forward(self, batch: RegularizerInput) -> Tensor:
        """β (L_mix − L); zero for a batch of one class."""
        embedding, labels, ids = batch.embedded.embedding, batch.labels, batch.ids
        differ = labels[:, None] != labels[None, :]
        if not bool(differ.any()):
            return batch.metric_loss * 0
        others = torch.multinomial(differ.float(), 1).squeeze(1)
        share = float(self.share.sample())
        mixtures = mixed(embedding, embedding[others], share, batch.embedder.normalize)
        together = torch.cat([embedding, mixtures.to(embedding.dtype)])
        # A mixture is no image: its id is none's.
        new_ids = torch.cat([ids, -1 - torch.arange(len(ids), device=ids.device)])
        of_first, of_other = (
            batch.metric(together, torch.cat([labels, part]), new_ids) for part in (labels, labels[others])
        )
        return self.strength * (share * of_first + (1 - share) * of_other - batch.metric_loss)
