"""Where the training classes lie in the embedding, as a sampler wants to know: the steps' own embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClassCentres(nn.Module):
    """Mean embedding of each class over the training steps of the latest whole epoch: no pass of its own.

    All is in its state, the epoch that is going on included, so that a run which resumes in mid epoch has
    the centres that this epoch began with, and the sums that the next will.

    Args:
        num_classes: C.
        size: of the embedding, d.
    """

    latest: Tensor
    sums: Tensor
    counts: Tensor
    epoch: Tensor

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("latest", torch.zeros(num_classes, size))
        self.register_buffer("sums", torch.zeros(num_classes, size))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("epoch", torch.tensor(-1))

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Those of a step, over all processes: `(B, d)` and `(B,)` int64 in 0..C-1."""
        self.sums.index_add_(0, labels, embeddings.to(self.sums.dtype))
        self.counts += labels.bincount(minlength=len(self.counts))

    @torch.no_grad()
    def begin(self, epoch: int) -> Tensor | None:
        """The centres with which an epoch begins, `(C, d)`; none before one is over.

        A class that the latest epoch had no image of keeps its centre; until it has one, that is zero.
        """
        if int(self.epoch) != epoch:
            seen = self.counts > 0
            self.latest[seen] = self.sums[seen] / self.counts[seen, None]
            self.sums.zero_()
            self.counts.zero_()
            self.epoch.fill_(epoch)
        return self.latest if bool(self.latest.any()) else None
