"""Erasure: an optimal linear adversary in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, AdversaryOutput
from unseen.nn.adversary.spoiling import SpoilingAdversary


class Erasure(SpoilingAdversary):
    """The directions of the embedding that separate the seen classes best are projected out.

    `e' = e − U Uᵀ e`, then brought to length 1; U an orthonormal basis of the r leading eigenvectors of
    `(S_W + 0.1 tr(S_W)/d · I)⁻¹ S_B`: an optimal linear adversary in closed form (Fisher 1936). S_W and S_B
    are moving averages over batches, r is drawn from 1..`largest` at each step.

    Args:
        largest: of the ranks drawn.
        momentum: of the moving averages.
        every: steps between two eigendecompositions.
        random_frame: the control: a random orthonormal basis in place of U.
        settings: of `ClassAdversary`; its strength is β. It must see the embedding.

    Raises:
        ValueError: a number is out of range, or it sees the fused features.
    """

    sees_only = "embedding"
    within: Tensor
    between: Tensor
    basis: Tensor
    steps: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        largest: int,
        momentum: float,
        every: int,
        random_frame: bool,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        if not 1 <= largest < in_features:
            raise ValueError(f"largest={largest}: wanted a rank from 1 to {in_features - 1}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: wanted a number in [0, 1).")
        if every < 1:
            raise ValueError(f"every={every}: wanted at least 1 step.")
        self.largest, self.momentum, self.every, self.random_frame = largest, momentum, every, random_frame
        self.register_buffer("within", torch.zeros(in_features, in_features))
        self.register_buffer("between", torch.zeros(in_features, in_features))
        self.register_buffer("basis", torch.zeros(in_features, largest))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: AdversaryInput, strength: float) -> AdversaryOutput:
        """See `ClassAdversary.forward`; the scatter is followed in silent epochs too."""
        with torch.autocast(batch.labels.device.type, enabled=False):
            self._follow(batch.embedded.embedding.detach().float(), batch.labels)
        return super().forward(batch, strength)

    def _follow(self, embeddings: Tensor, labels: Tensor) -> None:
        within, between = scatter(embeddings, labels)
        self.within = torch.lerp(within, self.within, self.momentum)
        self.between = torch.lerp(between, self.between, self.momentum)
        if int(self.steps) % self.every == 0:
            self.basis = fisher_directions(self.within, self.between, self.largest)
        self.steps = self.steps + 1

    def spoiled(self, batch: AdversaryInput, features: Tensor) -> Tensor:
        """The embedding without up to `largest` directions."""
        rank = int(torch.randint(1, self.largest + 1, ()))
        basis = torch.linalg.qr(torch.randn_like(self.basis)).Q if self.random_frame else self.basis
        # The first r columns span the r leading directions.
        chosen = basis[:, :rank]
        erased = features - (features @ chosen) @ chosen.T
        return functional.normalize(erased, dim=1) if batch.embedder.normalize else erased


def scatter(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Within-class and between-class scatter of a batch, `(d, d)` each, divided by the number of images.

    Args:
        embeddings: `(B, d)`.
        labels: `(B,)` int64.
    """
    _, position = labels.unique(return_inverse=True)
    member = functional.one_hot(position).to(embeddings.dtype)
    means = (member.T @ embeddings) / member.sum(dim=0).unsqueeze(1)
    own = means[position]
    within, between = embeddings - own, own - embeddings.mean(dim=0)
    return within.T @ within / len(labels), between.T @ between / len(labels)


def fisher_directions(within: Tensor, between: Tensor, count: int) -> Tensor:
    """Orthonormal basis, `(d, count)`, of the leading eigenvectors of `(S_W + 0.1 tr(S_W)/d · I)⁻¹ S_B`.

    Its first r columns span the r leading ones.
    """
    size = len(within)
    ridge = 0.1 * within.trace() / size
    regular = within + torch.clamp(ridge, min=1e-8) * torch.eye(size, device=within.device)
    factor = torch.linalg.cholesky(regular)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    symmetric = torch.linalg.solve_triangular(factor, half.T, upper=False)
    vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2).eigenvectors[:, -count:].flip(1)
    leading = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
    # Laid out as a checkpoint restores it: products of another layout are rounded otherwise.
    return torch.linalg.qr(leading).Q.contiguous()
