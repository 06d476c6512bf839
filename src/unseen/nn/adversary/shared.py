"""A branch for what images of different classes share, from which the class is driven out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, AdversaryOutput, ClassAdversary
from unseen.nn.embedder import Embedded

Grouping = Callable[[Tensor], Tensor]
"""The cluster of each image, `(B,)` int64 → the target that its branch must learn, `(B,)`."""


def by_cluster(clusters: Tensor) -> Tensor:
    """What the images share beside their class."""
    return clusters


def at_random(clusters: Tensor) -> Tensor:
    """The control: the same clusters, dealt to other images."""
    return clusters[torch.randperm(len(clusters), device=clusters.device)]


class SharedCharacteristics(ClassAdversary):
    """A second embedding `s = V f` learns clusters that cut across classes, and must not show the class.

    After Roth, Brattoli & Ommer 2019 ("MIC: Mining interclass characteristics", ICCV, section 3): features
    less their class's mean, in units of the deviation within classes, are clustered; the branch learns the
    cluster as a surrogate class, so the backbone must describe pose, light and background too. The head
    sees `s`. With K clusters and the head's posterior h(s), the loss of the branch is

        L_s = CE(scale · cos(q_k, s)) + uniformity · KL(uniform ‖ h(s)) + decorrelation · mean_ij ρ(e_i, s_j)²

    (less the constant entropy of the uniform) and it is added at λ, the strength; ρ are correlations over the
    batch, where Roth et al. reverse the gradient of a learned projection between the two embeddings. Clusters
    are kept by k-means over the batches (moving averages), where they cluster all images once an epoch. The
    branch is not deployed.

    Args:
        size: of the branch.
        clusters: K.
        momentum: of the averages of means, deviation and cluster centres.
        uniformity: weight of driving the class out of the branch.
        decorrelation: weight of keeping the branch apart from the embedding.
        grouping: what the branch learns; the control is `at_random`.
        settings: of `ClassAdversary`; its strength is λ. It must see the fused features.

    Raises:
        ValueError: a number is out of range, or it sees the embedding.
    """

    sees_only = "fused"
    means: Tensor
    variance: Tensor
    centres: Tensor
    seen: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        size: int,
        clusters: int,
        momentum: float,
        uniformity: float,
        decorrelation: float,
        grouping: Grouping,
        **settings: Any,
    ) -> None:
        super().__init__(size, num_classes, **settings)
        if clusters < 2:
            raise ValueError(f"clusters={clusters}: wanted at least 2.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: wanted a number in [0, 1).")
        if uniformity < 0 or decorrelation < 0:
            raise ValueError(
                f"uniformity={uniformity}, decorrelation={decorrelation}: a weight is not negative."
            )
        self.branch = nn.Linear(in_features, size)
        self.surrogates = nn.Parameter(functional.normalize(torch.randn(clusters, size), dim=1))
        self.momentum, self.uniformity, self.decorrelation = momentum, uniformity, decorrelation
        self.grouping = grouping
        self.register_buffer("means", torch.zeros(num_classes, in_features))
        self.register_buffer("variance", torch.ones(in_features))
        self.register_buffer("centres", torch.zeros(clusters, in_features))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def seen_features(self, embedded: Embedded) -> Tensor:
        """The branch `(B, size)`, of features of length 1."""
        branch: Tensor = self.branch(functional.normalize(embedded.fused.features, dim=1))
        return branch

    def forward(self, batch: AdversaryInput, strength: float) -> AdversaryOutput:
        """See `ClassAdversary.forward`; means and deviation are followed in silent epochs too."""
        with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
            self._follow(functional.normalize(batch.embedded.fused.features.float(), dim=1), batch.labels)
        return super().forward(batch, strength)

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """λ L_s."""
        with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
            standardized = self._standardized(batch.embedded.fused.features.float(), batch.labels)
            clusters = self._clusters(standardized)
        cosines = functional.linear(functional.normalize(features), functional.normalize(self.surrogates))
        surrogate = functional.cross_entropy(self.head.scale * cosines.float(), self.grouping(clusters))
        uniform = -self.as_constant(features).log_softmax(dim=1).mean()
        apart = correlations(batch.embedded.embedding.float(), features.float()).square().mean()
        return strength * (surrogate + self.uniformity * uniform + self.decorrelation * apart)

    def _follow(self, features: Tensor, labels: Tensor) -> None:
        """Moving averages of the classes' means, and of the variance around them."""
        for label in labels.unique():
            mean = features[labels == label].mean(dim=0)
            known = self.means[label] if self.seen[label] else mean
            self.means[label] = torch.lerp(mean, known, self.momentum)
        around = (features - self.means[labels]).square().mean(dim=0)
        known = self.variance if self.seen.any() else around
        self.seen[labels] = True
        self.variance.copy_(torch.lerp(around, known, self.momentum))

    def _standardized(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features `(B, D)` less their class's mean, in deviations within classes, of length 1."""
        difference = functional.normalize(features, dim=1) - self.means[labels]
        return functional.normalize(difference / self.variance.clamp(min=1e-12).sqrt(), dim=1)

    def _clusters(self, standardized: Tensor) -> Tensor:
        """The nearest centre of each image, `(B,)`; centres move towards the mean of their images."""
        if not self.centres.any():
            order = torch.randperm(len(standardized), device=standardized.device)
            start = order[torch.arange(len(self.centres), device=order.device) % len(order)]
            self.centres.copy_(standardized[start])
        clusters = (standardized @ self.centres.T).argmax(dim=1)
        for cluster in clusters.unique():
            mean = standardized[clusters == cluster].mean(dim=0)
            moved = torch.lerp(mean, self.centres[cluster], self.momentum)
            self.centres[cluster] = functional.normalize(moved, dim=0)
        return clusters


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over `B` images, of each column of `(B, d)` with each of `(B, m)`: `(d, m)`."""
    centred = [functional.normalize(columns - columns.mean(dim=0), dim=0) for columns in (one, other)]
    return centred[0].T @ centred[1]
