"""A batch that several processes share, as one process would have it: losses compare the images of all.

What lies before the features (the backbone) each process computes of its own images; what lies behind them
(the projection, the loss, the adversary) all compute alike, of all images. Averaged over processes, as
`DistributedDataParallel` does, gradients are then those of one process with the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from unseen.data.batch import Batch
from unseen.nn.embedder import Embedded, Embedder


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Rows(torch.autograd.Function):
    """All processes' rows; backward, those of this process.

    All compute the same loss of all rows, so each has the whole gradient at hand and none need be sent. It is
    multiplied by the number of processes, which the mean over them divides by.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(count())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].chunk(count())[dist.get_rank()] * count()


def all_rows(rows: Tensor) -> Tensor:
    """Rows `(B, …)` of each process → those of all `W`, `(W · B, …)` in the order of ranks, with gradients.

    In one process they are returned as they are.
    """
    if count() == 1:
        return rows
    gathered: Tensor = _Rows.apply(rows.contiguous())
    return gathered


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of equally shaped tensors, one of each process; no gradient."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def of_all(
    embedded: Embedded, batch: Batch, embedder: Embedder, with_positions: bool
) -> tuple[Embedded, Batch]:
    """The images of all processes, `W · B` of them, in the order of ranks.

    Random numbers are from here on those of the first process in all of them.

    Args:
        embedded: of this process's images.
        batch: likewise.
        embedder: that gave them.
        with_positions: whether what the fusion pooled is wanted too; it is far larger than the features.

    Returns:
        Features and embedding, labels and ids of all; images, maps and, unless wanted, positions stay this
        process's.
    """
    # As signed numbers, for seeds have 64 bits without a sign.
    seed = torch.tensor([torch.initial_seed()], dtype=torch.uint64).view(torch.int64)
    size = len(batch.labels)
    numbers = all_rows(torch.cat([batch.labels, batch.ids, seed.to(batch.labels.device)])[None])
    torch.manual_seed(int(numbers[0, -1]) % 2**64)
    fused = embedded.fused._replace(features=all_rows(embedded.fused.features))
    if with_positions:
        fused = fused._replace(
            attention=[all_rows(one) for one in fused.attention],
            positions=[all_rows(one) for one in fused.positions],
            scores=[all_rows(one) for one in fused.scores],
        )
    return (
        Embedded(embedder.embed_features(fused.features), fused, embedded.maps),
        batch._replace(labels=numbers[:, :size].flatten(), ids=numbers[:, size : 2 * size].flatten()),
    )
