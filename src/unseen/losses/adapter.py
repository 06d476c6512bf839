"""The one door to pytorch-metric-learning: any of its losses and miners, one signature, full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor, nn

from unseen.losses.memory import CrossBatchMemory
from unseen.losses.switching import switched


class MetricLoss(nn.Module):
    """A loss with its miner and its memory.

    Args:
        function: `(embeddings, labels)` → scalar is enough alone. With a miner or a memory it is called with
            `(embeddings, labels, indices, reference embeddings, reference labels)`, the contract of
            pytorch-metric-learning. Its parameters are trained with the network.
        miner: `(embeddings, labels, reference embeddings, reference labels)` → indices of pairs or triplets.
        memory: earlier embeddings to compare the batch with.
        compares_pairs: whether it compares embeddings with each other and so needs classes with two of them.
        switching: ρ, with which probability an anchor takes its positives for negatives in training; see
            `unseen.losses.switching`.

    Raises:
        ValueError: the function cannot be called with what the miner or the memory finds, or ρ is outside
            [0, 1).
    """

    def __init__(
        self,
        function: nn.Module,
        miner: nn.Module | None = None,
        memory: CrossBatchMemory | None = None,
        compares_pairs: bool = False,
        switching: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= switching < 1:
            raise ValueError(f"switching={switching}: a probability below 1, 0 for none.")
        if switching and not _takes(function, 3):
            raise ValueError(
                f"switching={switching}, but {_name(function)} takes fewer than 3 arguments: it compares "
                "whole batches. Choices: switching=0, or a loss of pytorch-metric-learning."
            )
        for key, value, count in (("miner", miner, 3), ("memory", memory, 5)):
            if value is not None and not _takes(function, count):
                raise ValueError(
                    f"{key} is {_name(value)}, but {_name(function)} takes fewer than {count} arguments: it "
                    f"compares whole batches. Choices: {key}=none, or a loss of pytorch-metric-learning."
                )
        self.function = function
        self.miner = miner
        self.memory = memory
        self.compares_pairs = compares_pairs
        self.switching = switching

    def forward(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The loss of a batch; zero, still attached to the graph, when no pair or triplet is left in it.

        Args:
            embeddings: `(B, d)` of any floating type; the loss is computed in float32.
            labels: `(B,)` int64 in 0..C-1.
            ids: `(B,)` int64; which image each embedding is of.

        Raises:
            ValueError: the function does not give a scalar.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            if self.memory is not None and self.memory.is_warm:
                loss = self._beyond_the_batch(self.memory, embeddings, labels, ids)
            else:
                loss = self._within_the_batch(embeddings, labels, ids)
            if not isinstance(loss, Tensor) or loss.ndim:
                raise ValueError(
                    f"{_name(self.function)} gave {_described(loss)}, wanted a scalar tensor: let it reduce "
                    "to a mean over the batch."
                )
            if self.memory is not None and self.training:
                self.memory.add(embeddings, labels, ids)
            return loss

    def _within_the_batch(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        if self.miner is None and not self._switches:
            return self.function(embeddings, labels)
        with _random_numbers_of(ids):
            indices = self.miner(embeddings, labels) if self.miner else get_all_pairs_indices(labels)
            indices = self._switched(indices, ids)
        return self.function(embeddings, labels, indices)

    def _beyond_the_batch(
        self, memory: CrossBatchMemory, embeddings: Tensor, labels: Tensor, ids: Tensor
    ) -> Tensor:
        # The batch comes first among the references: some losses use one index for both sides.
        references = memory.behind(embeddings, labels, ids)
        with _random_numbers_of(ids):
            mine = self.miner or _all_pairs
            indices = mine(embeddings, labels, references.embeddings, references.labels)
            indices = self._switched(_without_self(indices, ids, references.ids), ids)
        return self.function(embeddings, labels, indices, references.embeddings, references.labels)

    @property
    def _switches(self) -> bool:
        return self.switching > 0 and self.training

    def _switched(self, indices: tuple[Tensor, ...], ids: Tensor) -> tuple[Tensor, ...]:
        if not self._switches:
            return indices
        return switched(indices, torch.rand(len(ids), device=ids.device) < self.switching)


def as_metric_loss(loss: nn.Module) -> nn.Module:
    """Any loss with the contract of `MetricLoss`, `(embeddings, labels, ids)` → scalar.

    What names a parameter `ids` in its `forward` already has that contract and is returned as it is; any
    other module is called with `(embeddings, labels)`.
    """
    if "ids" in signature(loss.forward).parameters:
        return loss
    return MetricLoss(loss)


def pair_loss(
    function: nn.Module,
    miner: nn.Module | None,
    memory: Callable[..., CrossBatchMemory] | None,
    switching: float,
    *,
    num_classes: int,
    embedding_size: int,
) -> MetricLoss:
    """A loss that compares embeddings with each other: pairs, triplets, or whole lists.

    Args:
        function: the loss, built.
        miner: built, or none for every pair or triplet.
        memory: called with `embedding_size`, or none.
        switching: see `MetricLoss`.
        num_classes: training classes, C.
        embedding_size: d.

    Raises:
        ValueError: there are fewer than two classes, or the loss cannot look beyond its batch.
    """
    _check_classes(num_classes)
    if memory is None:
        return MetricLoss(function, miner, compares_pairs=True, switching=switching)
    _check_references(function, memory)
    made = memory(embedding_size=embedding_size)
    return MetricLoss(function, miner, made, compares_pairs=True, switching=switching)


def proxy_loss(
    function: Callable[..., nn.Module],
    miner: object | None,
    memory: object | None,
    *,
    num_classes: int,
    embedding_size: int,
) -> MetricLoss:
    """A loss that compares embeddings with learned proxies of the classes.

    Args:
        function: the loss, called with `num_classes` and `embedding_size`; the proxies are its parameters.
        miner: must be none.
        memory: must be none.
        num_classes: training classes, C.
        embedding_size: d.

    Raises:
        ValueError: there are fewer than two classes, or a miner or a memory was given.
    """
    _check_classes(num_classes)
    for key, value in (("miner", miner), ("memory", memory)):
        if value is not None:
            raise ValueError(
                f"{key} is {_name(value)}, but {_name(function)} compares embeddings with proxies, not with "
                f"each other. Choices: {key}=none, or a loss of pairs such as loss=multi_similarity."
            )
    return MetricLoss(function(num_classes=num_classes, embedding_size=embedding_size))


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"There is {num_classes} training class; a metric loss contrasts at least 2.")


def _check_references(function: nn.Module, memory: object) -> None:
    """Ask the loss itself: those that cannot use other embeddings as references refuse them."""
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    indices = get_all_pairs_indices(labels, labels.clone())
    try:
        function(embeddings, labels, indices, embeddings.clone(), labels.clone())
    except ValueError as error:
        raise ValueError(
            f"memory is {_name(memory)}, but {_name(function)} compares only embeddings of the same batch. "
            "Choices: memory=none, or a loss that looks beyond its batch such as loss=contrastive."
        ) from error


def _name(thing: Any) -> str:
    """Class name of an object, or of what a partial will make."""
    made = getattr(thing, "func", None) or type(thing)
    return str(made.__name__)


def _takes(function: nn.Module, count: int) -> bool:
    """Whether `forward` can be called with so many arguments by position."""
    try:
        signature(function.forward).bind(*range(count))
    except TypeError:
        return False
    return True


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _all_pairs(_: Tensor, labels: Tensor, __: Tensor, reference_labels: Tensor) -> tuple[Tensor, ...]:
    return get_all_pairs_indices(labels, reference_labels)


def _without_self(indices: tuple[Tensor, ...], ids: Tensor, reference_ids: Tensor) -> tuple[Tensor, ...]:
    """Drop positives that show the anchor's own image: itself, or what the memory holds of it."""
    anchors, positives = indices[:2]
    keep = ids[anchors] != reference_ids[positives]
    if len(indices) == 3:
        return tuple(index[keep] for index in indices)
    return anchors[keep], positives[keep], *indices[2:]


@contextmanager
def _random_numbers_of(ids: Tensor) -> Iterator[None]:
    """Draw random numbers that depend on the batch alone, so that a resumed run mines the same."""
    devices = [ids.device] if ids.is_cuda else []
    weights = torch.arange(1, len(ids) + 1, device=ids.device)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int((ids * weights).sum()))
        yield
