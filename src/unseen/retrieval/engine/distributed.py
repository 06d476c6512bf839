"""Gather what ranks hold, and share the queries among them. Results do not depend on the number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from unseen.retrieval.engine.inputs import SearchInputs


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(part: Tensor) -> Tensor:
    """Parts `(n_rank, ...)` of all ranks in the order of ranks: `(Σ n_rank, ...)` on every rank.

    Ranks may hold different numbers of rows, or none.
    """
    if world_size() == 1:
        return part
    sizes = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(part)], device=part.device))
    longest = int(torch.cat(sizes).max())
    padded = torch.zeros((longest, *part.shape[1:]), dtype=part.dtype, device=part.device)
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([rows[: int(size)] for rows, size in zip(parts, sizes, strict=True)])


def first_of_each(ids: Tensor) -> Tensor:
    """Rows of the first occurrence of each id, in ascending order of ids: samplers pad by repeating."""
    sorted_ids, order = ids.sort(stable=True)
    new = torch.ones_like(sorted_ids, dtype=torch.bool)
    new[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return order[new]


def share(inputs: SearchInputs, keys_of: Callable[[SearchInputs], Tensor]) -> Tensor:
    """`keys_of(inputs)`, each rank for its own run of queries; every rank returns all keys `(N, k)`."""
    count, ranks, rank = len(inputs.queries), world_size(), dist.get_rank()
    start, stop = rank * count // ranks, (rank + 1) * count // ranks
    queries = replace(
        inputs.queries, raw=inputs.queries.raw[start:stop], factor=inputs.queries.factor[start:stop]
    )
    return gather(keys_of(replace(inputs, queries=queries, own=inputs.own[start:stop])))
