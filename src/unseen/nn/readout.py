"""From fused features to the deployed embedding, without what training learned for the seen classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Readout(nn.Module):
    """`e = P (f − m)`: the fused features along their principal directions.

    The loss sees a learned projection of the fused features. That layer is the furthest from the pretrained
    network and nearest to the loss, and it forgets what the seen classes do not need; the features before it
    keep more. So the projection is for training, and what is deployed are the features, brought to the same
    size by principal components of training images, for which labels are not used (Bordes et al. 2023,
    "Guillotine regularization", arXiv:2206.13378, of self-supervised learning; Jégou & Chum 2012 of principal
    components in retrieval).

    Until `fit`, m is zero and P random.

    Args:
        in_features: D.
        size: d; dimensions beyond D stay zero.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("directions", _completed(torch.zeros(in_features, 0), size))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D)` → `(B, d)`, float32."""
        return (features.float() - self.mean) @ self.directions.T

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take mean and principal directions of fused features `(N, D)`.

        Where N − 1 < d, random directions at right angles to the principal ones complete them: what varies
        little among few images may still tell other classes apart. Features that are not finite, as after
        training that diverged, change nothing.
        """
        if not bool(features.isfinite().all()):
            return
        # On the CPU, as MPS has neither float64 nor this decomposition.
        values = features.to("cpu", torch.float32)
        mean = values.mean(dim=0)
        principal = principal_directions(values - mean, len(self.directions))
        self.mean.copy_(mean)
        self.directions.copy_(_completed(principal.T, len(self.directions)))


def principal_directions(centred: Tensor, count: int) -> Tensor:
    """Orthonormal rows, at most `(count, D)`, the direction of the largest variance first.

    Args:
        centred: `(N, D)` of mean zero; the N × N Gram matrix is decomposed, which is small.
        count: of directions; fewer are given where the values span fewer.
    """
    values = centred.double()
    variances, vectors = torch.linalg.eigh(values @ values.T)
    spanned = variances > variances[-1].clamp(min=0) * 1e-9
    leading = vectors[:, spanned].flip(1)[:, :count]
    # Once more orthonormal: each direction is a sum of many values, divided by a length that may be small.
    return torch.linalg.qr(values.T @ leading).Q.T.float()


def _completed(columns: Tensor, size: int) -> Tensor:
    """Orthonormal columns `(D, r)` and random ones at right angles to them, as rows `(size, D)`."""
    dimensions, given = columns.shape
    wanted = min(size, dimensions)
    if given < wanted:
        generator = torch.Generator().manual_seed(0)
        more = torch.randn(dimensions, wanted - given, generator=generator).to(columns.device)
        columns = torch.linalg.qr(torch.cat([columns, more], dim=1)).Q
    rows = columns[:, :wanted].T
    return torch.cat([rows, rows.new_zeros(size - wanted, dimensions)])
