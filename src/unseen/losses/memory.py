"""Cross-batch memory: a queue of earlier embeddings (Wang et al. 2020, arXiv:1912.06798)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

     Early in training the network changes so fast that embeddings of a few steps ago are those of another one
    . During the warm-up the memory is therefore filled but not used: when the warm-up ends it
     holds just what it would hold had there been none.

     Args:
         size: embeddings it holds.
         embedding_size: d.
         warmup: batches of training that are compared with themselves alone.

     Raises:
         ValueError: `size` is below 1, or `warmup` below 0.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    steps: Tensor

    def __init__(self, size: int, embedding_size: int, warmup: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"size={size}: a memory holds at least 1 embedding (memory=none switches it off)."
            )
        if warmup < 0:
            raise ValueError(f"warmup={warmup}: wanted a number of batches, 0 for no warm-up.")
        self.size = size
        self.warmup = warmup
        self.remembers = True
        # Batches to be added later; none where they are added at once.
        self._postponed: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        # A negative label marks a place that is still empty.
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("ids", torch.full((size,), -1))
        # How many batches were remembered: a buffer, so that the warm-up goes on where a checkpoint left it.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return int((self.labels >= 0).sum())

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up is over and the memory is compared with."""
        return int(self.steps) >= self.warmup

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
        if not self.remembers:
            return
        if self._postponed is not None:
            self._postponed.append((embeddings, labels, ids))
            return
        # New tensors, not written in place: autograd may still hold the old ones.
        self.embeddings = torch.cat([embeddings.detach(), self.embeddings])[: self.size]
        self.labels = torch.cat([labels, self.labels])[: self.size]
        self.ids = torch.cat([ids, self.ids])[: self.size]
        self.steps = self.steps + 1


@contextmanager
def remembering_afterwards(loss: nn.Module) -> Iterator[None]:
    """What the loss would add to its memories while it lasts is added when it is over: for a step that takes
    the loss more than once, which all meet the same memories."""
    memories = _memories(loss)
    for memory in memories:
        memory._postponed = []
    try:
        yield
    except BaseException:
        for memory in memories:
            memory._postponed = None
        raise
    for memory in memories:
        batches, memory._postponed = memory._postponed or [], None
        for batch in batches:
            memory.add(*batch)


@contextmanager
def not_remembering(loss: nn.Module) -> Iterator[None]:
    """While it lasts, every memory in the loss is compared with and nothing is added to it: for embeddings
    that are no image's own."""
    memories = _memories(loss)
    for memory in memories:
        memory.remembers = False
    try:
        yield
    finally:
        for memory in memories:
            memory.remembers = True


def _memories(loss: nn.Module) -> list[CrossBatchMemory]:
    return [module for module in loss.modules() if isinstance(module, CrossBatchMemory)]
