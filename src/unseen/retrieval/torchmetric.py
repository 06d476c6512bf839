"""`evaluate` as a torchmetrics.Metric: fed batch by batch, on any number of ranks. Needs torchmetrics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from unseen.retrieval.evaluate import RetrievalResult, evaluate


class RetrievalMetric(Metric):
    """Accumulate embeddings, then evaluate them all at once.

    Rows that a distributed sampler repeated count once: every row has an id.

    Args:
        evaluate: called with all rows; by default `unseen.retrieval.evaluate`.
        arguments: its keyword arguments; those that concern inputs come from `update`.

    Example:
        >>> metric = RetrievalMetric(recall_at=(1,))
        >>> metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([2, 3]))
        >>> metric.compute()["recall_at_1"]
        tensor(1., dtype=torch.float64)
    """

    gallery_ids: list[Tensor] | Tensor

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, evaluate: Callable[..., RetrievalResult] = evaluate, **arguments: Any) -> None:
        super().__init__()
        self._evaluate = functools.partial(evaluate, **arguments)
        for role in ("query", "gallery"):
            for name in ("embeddings", "labels", "ids"):
                self.add_state(f"{role}_{name}", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor, ids: Tensor, gallery: bool = False) -> None:
        """Take a batch.

        Args:
            embeddings: `(B, d)`.
            labels: `(B,)` integers.
            ids: `(B,)` integers, each row's own; a repeated id is the same row.
            gallery: the batch belongs to a separate gallery. Without any such batch, queries are the gallery.
        """
        role = "gallery" if gallery else "query"
        getattr(self, f"{role}_embeddings").append(embeddings.detach().float())
        getattr(self, f"{role}_labels").append(labels.to(torch.int64))
        getattr(self, f"{role}_ids").append(ids.to(torch.int64))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None
    ) -> None:
        # Of a rank that got no batch torchmetrics gathers `(0,)` float32, which has too few dimensions.
        for role in ("query", "gallery"):
            embeddings = getattr(self, f"{role}_embeddings")
            width = torch.tensor([embeddings[0].shape[1] if embeddings else 0], device=self.device)
            widest = max(int(one) for one in dist_sync_fn(width, group=process_group or self.process_group))
            if widest and not embeddings:
                nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
                self.update(torch.zeros(0, widest, device=self.device), nothing, nothing, role == "gallery")
        super()._sync_dist(dist_sync_fn, process_group)

    def compute(self) -> dict[str, Tensor]:
        """The metrics' means."""
        return {
            name: torch.tensor(value, dtype=torch.float64) for name, value in self.result().metrics.items()
        }

    def result(self) -> RetrievalResult:
        """Everything `evaluate` returns, of what this process holds (inside `compute`: of all ranks)."""
        embeddings, labels, ids = self._rows("query")
        # A state is a list of batches, and after synchronisation one tensor (empty where the list was).
        state = self.gallery_ids
        if not any(part.numel() for part in ([state] if isinstance(state, Tensor) else state)):
            return self._evaluate(embeddings, labels, ids=ids)
        gallery, gallery_labels, gallery_ids = self._rows("gallery")
        return self._evaluate(
            embeddings,
            labels,
            ids=ids,
            gallery=gallery,
            gallery_labels=gallery_labels,
            gallery_ids=gallery_ids,
        )

    def _rows(self, role: str) -> tuple[Tensor, Tensor, Tensor]:
        embeddings, labels, ids = (
            dim_zero_cat(getattr(self, f"{role}_{name}")) for name in ("embeddings", "labels", "ids")
        )
        rows = first_of_each(ids)
        return embeddings[rows], labels[rows], ids[rows]


def first_of_each(ids: Tensor) -> Tensor:
    """Rows of the first occurrence of each id, in ascending order of ids: samplers pad by repeating."""
    sorted_ids, order = ids.sort(stable=True)
    new = torch.ones_like(sorted_ids, dtype=torch.bool)
    new[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return order[new]
