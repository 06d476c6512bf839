"""What a loader hands to the learner."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """`B` images.

    Args:
        images: `(B, 3, H, W)` uint8; normalisation is the backbone's.
        labels: `(B,)` int64; in training the seen label in `0 … C-1`, in evaluation the manifest's.
        ids: `(B,)` int64, rows of the manifest.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
