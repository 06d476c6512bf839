"""ρ-regularisation: now and then images of the same class are pushed apart (Roth et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor


def switched(indices: tuple[Tensor, ...], switches: Tensor) -> tuple[Tensor, ...]:
    """Pairs or triplets in which some anchors take their positives for negatives.

    Roth et al. (2020, arXiv:2002.08473) found that embeddings which keep what varies within classes
    generalise better, and keep it by switching with a probability. As in the authors' code, such an anchor
    is its own positive, and its negatives are left out.

    Args:
        indices: anchors, positives and negatives of triplets, each `(T,)`; or anchors and positives `(P,)`
            and anchors and negatives `(N,)` of pairs. References begin with the batch.
        switches: whether each of the batch is such an anchor, `(B,)` bool.
    """
    if len(indices) == 3:
        anchors, positives, negatives = indices
        off = switches[anchors]
        return anchors, torch.where(off, anchors, positives), torch.where(off, positives, negatives)
    anchors, positives, others, negatives = indices
    off, kept = switches[anchors], ~switches[others]
    alone = anchors[off].unique()
    return (
        torch.cat([anchors[~off], alone]),
        torch.cat([positives[~off], alone]),
        torch.cat([others[kept], anchors[off]]),
        torch.cat([negatives[kept], positives[off]]),
    )
