"""From fused features to the deployed embedding, without what training learned for the seen classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Readout(nn.Module):
    """`e = T P (f − m)`: the fused features along their principal directions, evened out within classes.

    The loss sees a learned projection of the fused features. That layer is the furthest from the pretrained
    network and nearest to the loss, and it forgets what the seen classes do not need; the features before it
    keep more. So the projection is for training, and what is deployed are the features, brought to the same
    size by principal components of training images (Bordes et al. 2023, "Guillotine regularization",
    arXiv:2206.13378, of self-supervised learning; Jégou & Chum 2012 of principal components in retrieval).

    `T = (S_W / τ + w I)^(−1/2)` with the scatter `S_W` of `P (f − m)` within classes and `τ = tr(S_W) / d`
    makes directions count less in which images of one class differ: light, pose, background, whatever the
    classes. It is the within-class covariance normalisation of Hatch et al. (2006, "Within-class covariance
    normalization for SVM-based speaker recognition", of unseen speakers), shrunk.

    With `beside`, the features of a second network lie beside them: `e = T P S ([f; g] − m)`, in as many
    dimensions. S brings each part to a total variance of its own over the training images, 1 − s of f and s
    of g, so that neither outweighs the other by its size.

    Until `fit`, m is zero, P random, T and S left out.

    Args:
        in_features: D.
        size: d; dimensions beyond D stay zero.
        whitening: w, in units of the mean variance within classes: the smaller, the more directions are
            evened out. None leaves T out.
        beside: C, of the second network's features; 0 for none.
        share: s, of them.

    Raises:
        ValueError: `whitening` is not above 0.
    """

    mean: Tensor
    directions: Tensor

    def __init__(
        self,
        in_features: int,
        size: int,
        whitening: float | None = None,
        beside: int = 0,
        share: float = 0.0,
    ) -> None:
        super().__init__()
        if whitening is not None and not whitening > 0:
            raise ValueError(f"embedding.whitening={whitening}: wanted a number above 0, or null for none.")
        self.whitening = whitening
        self.sizes, self.shares = (in_features, beside), (1 - share, share)
        self.register_buffer("mean", torch.zeros(sum(self.sizes)))
        self.register_buffer("directions", _completed(torch.zeros(sum(self.sizes), 0), size))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D)`, or `(B, D + C)` with those beside, → `(B, d)`, float32."""
        return (features.float() - self.mean) @ self.directions.T

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take mean, principal directions and scatter within classes.

        Where N − 1 < d, random directions at right angles to the principal ones complete them: what varies
        little among few images may still tell other classes apart. Features that are not finite, as after
        training that diverged, change nothing. Where no class has two images, T is left out.

        Args:
            features: fused, `(N, D)`; with those beside, `(N, D + C)`.
            labels: `(N,)`; only for T.
        """
        if not bool(features.isfinite().all()):
            return
        # On the CPU, as MPS has neither float64 nor this decomposition.
        values = features.to("cpu", torch.float32)
        mean = values.mean(dim=0)
        scales = self._scales(values - mean)
        scaled = (values - mean) * scales
        principal = principal_directions(scaled, len(self.directions))
        self.mean.copy_(mean)
        directions = _completed(principal.T, len(self.directions))
        if self.whitening is not None:
            even = evening(scaled @ directions.T, labels.cpu(), self.whitening)
            directions = (even @ directions.double()).float()
        self.directions.copy_(directions * scales)

    def _scales(self, centred: Tensor) -> Tensor:
        """The diagonal of S, `(D + C,)`; 1 for features alone."""
        if not self.sizes[1]:
            return torch.ones(())
        variances = [part.square().sum() / len(centred) for part in centred.split(self.sizes, dim=1)]
        return torch.cat(
            [
                # A part that is the same for all images tells nothing, at any scale.
                (share / variance.clamp(min=1e-12)).sqrt().expand(size)
                for share, variance, size in zip(self.shares, variances, self.sizes, strict=True)
            ]
        )


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


def evening(values: Tensor, labels: Tensor, whitening: float) -> Tensor:
    """`(S_W / τ + w I)^(−1/2)`, `(d, d)` float64; see `Readout`.

    Args:
        values: `(N, d)`.
        labels: `(N,)`; `S_W` is pooled over classes, with N − C degrees of freedom.
        whitening: w.
    """
    classes = labels.unique(return_inverse=True)[1]
    counts = classes.bincount().double()
    sums = values.new_zeros(len(counts), values.shape[1], dtype=torch.float64)
    means = sums.index_add(0, classes, values.double()) / counts[:, None]
    within = values.double() - means[classes]
    identity = torch.eye(values.shape[1], dtype=torch.float64)
    mean_variance = within.square().sum() / values.shape[1]
    if len(counts) == len(labels) or mean_variance == 0:
        return identity
    variances, vectors = torch.linalg.eigh(within.T @ within / mean_variance + whitening * identity)
    return (vectors * variances**-0.5) @ vectors.T


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
