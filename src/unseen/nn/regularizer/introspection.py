"""A second embedding of what an image is uncertain of, by which distances shrink in training (IDML)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unseen.nn.embedder import Embedder
from unseen.nn.regularizer.contract import MakeLoss, Regularizer, RegularizerInput, made_anew


class Introspection(Regularizer):
    """The metric loss by introspective distances, in the place of the plain one (Wang et al. 2022, IDML).

    `u = V f + c`, brought to length as embeddings are, learns beside the embedding e from the fused features,
    and the loss becomes `L([e; u])` of the distance that `unseen.losses.introspection` defines. Only e is
    deployed. The authors also mix images, which is left out.

    Args:
        embedder: whose fused features u is made of.
        loss: made anew, as a memory holds u too.
        introspective: a loss for embeddings `(B, d)` → one for `(B, 2d)`, e and behind it u.

    Raises:
        ValueError: as `introspective` and `made_anew`.
    """

    def __init__(
        self, embedder: Embedder, loss: MakeLoss, *, introspective: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        size = int(embedder.projection.out_features)
        self.uncertainty = nn.Linear(int(embedder.fusion.out_features), size)  # type: ignore[arg-type]
        self.losses.append(introspective(made_anew(loss, 2 * size, "introspection")))

    @property
    def replaced(self) -> float:
        """All of it."""
        return 1.0

    def forward(self, batch: RegularizerInput) -> Tensor:
        """What is to be added to `L(e)`."""
        uncertain = batch.embedder.scaled(self.uncertainty(batch.embedded.fused.features))
        both = torch.cat([batch.embedded.embedding.float(), uncertain.float()], dim=1)
        changed: Tensor = self.losses[0](both, batch.labels, batch.ids)
        return changed - batch.metric_loss
