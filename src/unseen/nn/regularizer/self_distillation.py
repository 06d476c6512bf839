"""Learning from embeddings of more dimensions, which train beside the one that is deployed (S2SD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unseen.nn.embedder import Embedder
from unseen.nn.regularizer.contract import (
    MakeLoss,
    Regularizer,
    RegularizerInput,
    check_strength,
    made_anew,
)
from unseen.nn.regularizer.relations import similarities


class SelfDistillation(Regularizer):
    r"""Simultaneous similarity-based self-distillation (Roth et al. 2021, arXiv:2009.08348).

    Branches `g_k` of more dimensions, `Linear(ReLU(Linear(f)))` on the fused features, train by the same
    metric loss with miners and proxies of their own, and teach the embedding how images relate:

    .. math:: L = \tfrac12 \left(L(e) + \operatorname{mean}_k L(g_k)\right)
        + \gamma \operatorname{mean}_k \operatorname{KL}(g_k \,\|\, e)

    as in the authors' code, without its distillation of features. The KL is that of `similarities`, in which
    the branches get no gradient.

    Args:
        embedder: whose fused features the branches see.
        loss: made anew for each branch.
        sizes: dimensions of each branch.
        strength: γ.
        temperature: of the similarities.

    Raises:
        ValueError: there is no branch, a number is not positive, or the loss is an object with parameters or
            a memory, which can be of one size only.
    """

    def __init__(
        self, embedder: Embedder, loss: MakeLoss, *, sizes: Sequence[int], strength: float, temperature: float
    ) -> None:
        super().__init__()
        check_strength(strength)
        if not temperature > 0:
            raise ValueError(f"regularizer.temperature={temperature}: wanted a positive number.")
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"regularizer.sizes={list(sizes)}: wanted one branch or more, each of size 1 or more."
            )
        self.strength, self.temperature = strength, temperature
        features = int(embedder.fusion.out_features)  # type: ignore[arg-type]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(features, size), nn.ReLU(), nn.Linear(size, size)) for size in sizes
        )
        self.losses.extend(made_anew(loss, size, "self_distillation") for size in sizes)

    @property
    def replaced(self) -> float:
        """Half of it, for the branches."""
        return 0.5

    def forward(self, batch: RegularizerInput) -> Tensor:
        """What is to be added to `L(e)`."""
        features, embedding = batch.embedded.fused.features, batch.embedded.embedding
        losses, divergences = [], []
        for branch, loss in zip(self.branches, self.losses, strict=True):
            larger = batch.embedder.scaled(branch(features))
            losses.append(loss(larger, batch.labels, batch.ids))
            divergences.append(similarities(embedding, larger, temperature=self.temperature))
        of_branches = torch.stack(losses).mean()
        return (of_branches - batch.metric_loss) / 2 + self.strength * torch.stack(divergences).mean()
