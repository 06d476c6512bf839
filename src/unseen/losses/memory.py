"""Cross-batch memory: a queue of earlier embeddings (Wang et al. 2020, arXiv:1912.06798)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class References(NamedTuple):
    """What the embeddings of a batch are compared with; the batch itself comes first.

    Args:
        embeddings: `(R, d)`.
        labels: `(R,)` int64.
        ids: `(R,)` int64.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor


class CrossBatchMemory(nn.Module):
    """The latest `size` embeddings, newest first, without gradient; saved and restored with a checkpoint.

    Args:
        size: embeddings it holds.
        embedding_size: d.

    Raises:
        ValueError: `size` is below 1.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"size={size}: a memory holds at least 1 embedding (memory=none switches it off)."
            )
        self.size = size
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        # A negative label marks a place that is still empty.
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("ids", torch.full((size,), -1))

    def __len__(self) -> int:
        return int((self.labels >= 0).sum())

    def behind(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> References:
        """The batch, `(B, d)`, `(B,)` and `(B,)`, followed by what is remembered."""
        filled = len(self)
        return References(
            torch.cat([embeddings, self.embeddings[:filled]]),
            torch.cat([labels, self.labels[:filled]]),
            torch.cat([ids, self.ids[:filled]]),
        )

    def add(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Remember a batch, `(B, d)`, `(B,)` and `(B,)`; the oldest are forgotten."""
        # New tensors, not written in place: autograd may still hold the old ones.
        self.embeddings = torch.cat([embeddings.detach(), self.embeddings])[: self.size]
        self.labels = torch.cat([labels, self.labels])[: self.size]
        self.ids = torch.cat([ids, self.ids])[: self.size]
