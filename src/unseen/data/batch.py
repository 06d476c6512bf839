"""What a loader hands to the learner."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """`B` images.

    Args:
        images: `(B, 3, H, W)` uint8; normalisation is the backbone's. None where there are maps instead.
        labels: `(B,)` int64; in training the seen label in `0 … C-1`, in evaluation the manifest's.
        ids: `(B,)` int64, rows of the manifest.
        maps: `(B, C_l, H_l, W_l)` of a frozen backbone: of its taps in order, then of its final map.
    """

    images: Tensor | None
    labels: Tensor
    ids: Tensor
    maps: tuple[Tensor, ...] = ()
