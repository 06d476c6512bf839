"""One int64 per (similarity, position) pair, whose order is: higher similarity first, then lower position."""

from __future__ import annotations

import torch
from torch import Tensor

LAST = 0xFFFFFFFF
"""Position of "no neighbour"."""


def to_keys(similarities: Tensor, positions: Tensor) -> Tensor:
    """Greater key, nearer neighbour.

    Args:
        similarities: float32 without NaN; -inf sorts last. Negative and positive zero are equal.
        positions: int64 in `0 … LAST`, same shape.
    """
    bits = (similarities + 0.0).view(torch.int32).long()
    # IEEE floats order like sign-magnitude integers: with negatives flipped they order like integers.
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered << 32) | (LAST - positions)


def from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities (float32) and positions (int64) of `keys`; undoes `to_keys`."""
    ordered = keys >> 32
    bits = torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF)
    return bits.to(torch.int32).view(torch.float32), LAST - (keys & LAST)


def top(keys: Tensor, k: int) -> Tensor:
    """The `k` greatest of each row, greatest first; padded with "no neighbour" where a row is shorter."""
    if keys.shape[1] < k:
        nothing = to_keys(torch.tensor(-torch.inf), torch.tensor(LAST)).to(keys.device)
        keys = torch.cat([keys, nothing.expand(len(keys), k - keys.shape[1])], dim=1)
    return keys.topk(k, dim=1).values
