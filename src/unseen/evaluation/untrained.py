"""The reference that every run has: the plain features of its backbone before training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from unseen.nn.backbone import Backbone, FeatureMaps
from unseen.nn.embedder import Embedded
from unseen.nn.fusion import Fused

JUDGED = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}


class PlainFeatures(nn.Module):
    """`e = f / ‖f‖` with `f = GAP(final map)`: what `fusion=last` pools, without the linear layer.

    Args:
        backbone: images → feature maps; shared, not copied.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Embedded:
        """`(B, 3, H, W)`, uint8 in [0, 255] or float in [0, 1] → embedding `(B, C)` and its sources."""
        return self.embed_maps(self.backbone(images))

    def embed_maps(self, maps: FeatureMaps) -> Embedded:
        """Feature maps of `B` images → embedding `(B, C)` and its sources."""
        features = maps.final.mean((2, 3))
        return Embedded(functional.normalize(features.float(), dim=1), Fused(features, []), maps)


def worse_than_untrained(metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """A warning when unseen classes were retrieved better before training than after it; else none.

    Args:
        metrics: split → metric → value in [0, 1], with the splits `unseen` and `untrained`.
    """
    after, before = metrics.get("unseen", {}), metrics.get("untrained", {})
    worse = [
        f"{title} {100 * after[name]:.1f} after training, {100 * before[name]:.1f} before it"
        for name, title in JUDGED.items()
        if name in after and name in before and after[name] < before[name]
    ]
    if not worse:
        return None
    return (
        f"Training made unseen classes worse: {'; '.join(worse)} "
        "(in %; before: plain features of the untrained backbone). "
        "Try fewer epochs (trainer.max_epochs), a lower rate of the backbone "
        "(optimizer.learning_rates.backbone), or keep the backbone as it is "
        "(backbone.frozen=true)."
    )
