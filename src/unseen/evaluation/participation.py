"""In how many directions the classes of an embedding differ."""

from __future__ import annotations

import torch
from torch import Tensor


def participation_ratio(embeddings: Tensor, labels: Tensor) -> float:
    """Of the between-class scatter S_B: `(Σ λ_i)² / Σ λ_i²` over its eigenvalues, between 1 and C − 1.

    Equally many as it gives directions, were all of the same variance. Training that overfits its classes
    leaves few (neural collapse); how many are left to unseen classes is what a metric cannot say.

    Args:
        embeddings: `(N, d)`.
        labels: `(N,)` integers of C classes; each class counts once, whatever its size.

    Returns:
        The ratio; NaN with fewer than two classes, when all class means coincide, or when one is not finite.
    """
    _, position = labels.unique(return_inverse=True)
    values = embeddings.detach().to("cpu", torch.float64)
    counts = torch.bincount(position)
    means = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, position, values)
    means = means / counts.unsqueeze(1)
    centred = means - means.mean(dim=0)
    # The C × C Gram matrix has the non-zero eigenvalues of S_B; their sum is its trace, of squares its norm.
    gram = centred @ centred.T
    squares = float(gram.square().sum())
    return float(gram.trace()) ** 2 / squares if squares > 0 else float("nan")
