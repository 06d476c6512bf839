"""Where embeddings lie, seen from the side on which they spread most."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 8192


def principal_plane(embeddings: Tensor) -> Tensor:
    """Coordinates on the first two principal components (Pearson 1901), largest variance first.

    Equal embeddings give equal coordinates: of each component, the entry that is largest in size is positive.
    Memory beyond the embeddings is `d²` and a chunk of rows.

    Args:
        embeddings: `(N, d)` float32 on the CPU.

    Returns:
        `(N, 2)` float32; a component that is not there (`d` is 1) is 0.
    """
    size = embeddings.shape[1]
    mean = embeddings.mean(0)
    scatter = torch.zeros((size, size), dtype=torch.float64)
    for rows in embeddings.split(CHUNK):
        centred = rows - mean
        scatter += centred.T @ centred  # products in float32, their sum is not
    components = torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, :2]  # eigenvalues ascend
    largest = components.abs().argmax(0, keepdim=True)
    components = components * components.gather(0, largest).sign()
    components = components.float()
    points = torch.cat([(rows - mean) @ components for rows in embeddings.split(CHUNK)])
    return torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
