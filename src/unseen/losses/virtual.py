"""Any loss on a batch with virtual classes: classes that lie between two seen ones (Gu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

CLASS_AXIS = {"proxies": 0, "W": 1, "fc": 1}
"""Where the classes lie in proxies, by the names that pytorch-metric-learning and we give them."""
NUMBERS = ("beta",)
"""Names of parameters that may be one number a class: the boundary of the margin loss."""


def loss_among(
    loss: nn.Module,
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor,
    *,
    virtual: Tensor,
    virtual_labels: Tensor,
    pairs: Tensor,
    share: float,
    num_classes: int,
) -> Tensor:
    """The loss of the batch and of `V` virtual classes together.

    A loss with proxies gets those of the virtual classes: `μ p_a / ‖p_a‖ + (1 − μ) p_b / ‖p_b‖` for the pair
    (a, b) (Gu et al. 2021, arXiv:2103.15454, eq. 5). Of a parameter with one number a class it is
    `μ β_a + (1 − μ) β_b`.

    Args:
        loss: `(embeddings, labels, ids)` → scalar.
        embeddings: `(B, d)`.
        labels: `(B,)` int64 in 0..C-1.
        ids: `(B,)` int64.
        virtual: embeddings of virtual classes, `(N, d)`.
        virtual_labels: `(N,)` int64 in 0..V-1.
        pairs: `(V, 2)` int64, seen classes.
        share: μ.
        num_classes: C.

    Raises:
        ValueError: the loss has a matrix of which it is not known how to mix its classes.
    """
    new_ids = -1 - torch.arange(len(virtual), device=ids.device)
    together = (
        torch.cat([embeddings, virtual.to(embeddings.dtype)]),
        torch.cat([labels, num_classes + virtual_labels]),
        torch.cat([ids, new_ids]),
    )
    extended = {
        name: _extended(name, parameter, num_classes, pairs, share)
        for name, parameter in loss.named_parameters()
        if parameter.ndim >= 2
    }
    extended |= {
        name: _mixed(numbers, pairs, share)
        for name, numbers in loss.named_parameters()
        if _is_of_each(name, numbers, num_classes)
    }
    with _classes(loss, num_classes + len(pairs)), ExitStack() as fixed:
        for module in loss.modules():
            for name, numbers in list(vars(module).items()):
                if isinstance(numbers, Tensor) and _is_of_each(name, numbers, num_classes):
                    fixed.enter_context(_changed(module, name, _mixed(numbers, pairs, share)))
        result: Tensor = functional_call(loss, extended, together)
    return result


def _is_of_each(name: str, numbers: Tensor, num_classes: int) -> bool:
    """Whether a parameter, or what is kept fixed in its place, is one number a class."""
    return name.rpartition(".")[2] in NUMBERS and numbers.shape == (num_classes,) and num_classes > 1


def _mixed(numbers: Tensor, pairs: Tensor, share: float) -> Tensor:
    return torch.cat([numbers, share * numbers[pairs[:, 0]] + (1 - share) * numbers[pairs[:, 1]]])


def _extended(name: str, parameter: Tensor, num_classes: int, pairs: Tensor, share: float) -> Tensor:
    axis = CLASS_AXIS.get(name.rpartition(".")[2])
    if axis is None or parameter.shape[axis] % num_classes:
        raise ValueError(
            f"The loss has a parameter '{name}' of shape {tuple(parameter.shape)}: how to mix it for virtual "
            "classes is not known. Choose another adversary, or a loss of this package."
        )
    rows = parameter if axis == 0 else parameter.t()
    # Several proxies of a class lie in consecutive rows.
    of_class = nn.functional.normalize(rows, dim=1).unflatten(0, (num_classes, -1))
    mixed = share * of_class[pairs[:, 0]] + (1 - share) * of_class[pairs[:, 1]]
    longer = torch.cat([rows, mixed.flatten(0, 1)])
    return longer if axis == 0 else longer.t()


@contextmanager
def _classes(loss: nn.Module, count: int) -> Iterator[None]:
    """Losses keep the number of classes, and their labels, as plain attributes."""
    with ExitStack() as changes:
        for module in loss.modules():
            if "num_classes" in vars(module):
                changes.enter_context(_changed(module, "num_classes", count))
            if "proxy_labels" in vars(module):
                changes.enter_context(_changed(module, "proxy_labels", torch.arange(count)))
        yield


@contextmanager
def _changed(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
