"""Images → embedding: backbone, fusion, one linear layer for the loss, and what is deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from unseen.nn.backbone import Backbone, FeatureMaps
from unseen.nn.fusion import Fused
from unseen.nn.readout import Readout

READOUT, PRETRAINED = "readout.", "pretrained."
"""What names of an embedder's weights begin with: of its readout, and of the pretrained network beside it."""


class Embedded(NamedTuple):
    """What an embedder gives for `B` images.

    Args:
        embedding: `(B, d)`.
        fused: features `(B, D)` and attention maps.
        maps: the backbone's feature maps.
        pretrained: pooled final map of the pretrained network, `(B, C)`, where it is deployed too.
    """

    embedding: Tensor
    fused: Fused
    maps: FeatureMaps
    pretrained: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """What a readout reads: `(B, D)`, or `(B, D + C)` with the pretrained network's beside them."""
        features = self.fused.features
        return features if self.pretrained is None else torch.cat([features, self.pretrained], dim=1)


class Embedder(nn.Module):
    """In training `e = W f + b`, then `e / ‖e‖`; between them, if asked for, a layer norm.

    In evaluation, the same or the features `f` themselves, in d dimensions and brought to length 1: see
    `Readout`.

    Args:
        backbone: images → feature maps.
        fusion: called with `tap_channels` and `final_channels`; feature maps → fused features.
        size: of the embedding, d.
        normalize: divide embeddings by their length.
        layer_norm: bring each embedding to mean 0 and variance 1 over its dimensions, without parameters
            (Zhai & Wu 2019, section 3.3).
        readout: what evaluation mode gives: the fused `features` along their principal directions, or the
            `projection` that the loss sees.
        whitening: of the features' readout; see `Readout`.
        frozen_batch_norm: keep every batch norm of the backbone at the statistics it has.
        pretrained_share: s > 0 has a frozen copy of the backbone as it is given here, whose pooled final map
            is deployed beside the features, by the share s; see `Readout`. Networks from before this could
            be chosen have none.

    Attributes:
        pretrained: that copy, or none.
        overrides: of the configuration it was built from by `unseen.embedder`; none for one built of objects.

    Raises:
        ValueError: the size is below 1, `readout` unknown, `whitening` not above 0, or `pretrained_share`
            outside [0, 1] or without a readout of features.
    """

    overrides: tuple[str, ...] | None = None

    def __init__(
        self,
        backbone: Backbone,
        fusion: Callable[..., nn.Module],
        *,
        size: int,
        normalize: bool,
        layer_norm: bool,
        readout: Literal["features", "projection"],
        whitening: float | None,
        frozen_batch_norm: bool,
        pretrained_share: float = 0.0,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"embedding.size={size}: an embedding has at least 1 dimension.")
        if readout not in ("features", "projection"):
            raise ValueError(f"embedding.readout={readout}: choices are features, projection.")
        if not 0 <= pretrained_share <= 1:
            raise ValueError(f"embedding.pretrained_share={pretrained_share}: wanted a share in [0, 1].")
        if pretrained_share and readout != "features":
            raise ValueError(
                f"embedding.pretrained_share={pretrained_share} with embedding.readout={readout}: the "
                "pretrained network's features lie beside features. Set embedding.readout=features."
            )
        self.backbone = backbone
        self.pretrained = _frozen_copy(backbone) if pretrained_share else None
        self.fusion = fusion(tap_channels=backbone.tap_channels, final_channels=backbone.final_channels)
        features: int = self.fusion.out_features  # type: ignore[assignment]
        self.projection = nn.Linear(features, size)
        beside = backbone.final_channels if pretrained_share else 0
        self.readout = (
            Readout(features, size, whitening, beside, pretrained_share) if readout == "features" else None
        )
        self.normalize = normalize
        self.layer_norm = layer_norm
        self.frozen_batch_norm = frozen_batch_norm
        self.train(self.training)

    def forward(self, images: Tensor) -> Embedded:
        """`(B, 3, H, W)`, uint8 in [0, 255] or float in [0, 1] → embedding `(B, d)` and its sources."""
        maps = self.backbone(images)
        if self.pretrained is None or self.readout is None or self.training:
            return self._embedded(maps)
        return self._embedded(maps, self.pretrained(images).final)

    def embed_maps(self, maps: FeatureMaps) -> Embedded:
        """Feature maps that a frozen backbone gave for `B` images → embedding `(B, d)` and its sources."""
        return self._embedded(maps, None if self.pretrained is None else maps.final)

    def _embedded(self, maps: FeatureMaps, pretrained: Tensor | None = None) -> Embedded:
        fused = self.fusion(maps)
        if self.training or self.readout is None:
            return Embedded(self.embed_features(fused.features), fused, maps)
        beside = None if pretrained is None else pretrained.mean((2, 3))
        sources = Embedded(fused.features, fused, maps, beside)
        embedding = self.readout(sources.read)
        if self.normalize:
            embedding = functional.normalize(embedding, dim=1)
        return sources._replace(embedding=embedding)

    def embed_features(self, features: Tensor) -> Tensor:
        """Fused features `(B, D)` → the embedding that the loss sees, `(B, d)`."""
        return self.scaled(self.projection(features))

    def scaled(self, embedding: Tensor) -> Tensor:
        """Layer norm and length of `(B, d)`, of any d, as the embeddings of the loss have them."""
        if self.layer_norm:
            embedding = functional.layer_norm(embedding.float(), embedding.shape[1:])
        if self.normalize:
            embedding = functional.normalize(embedding.float(), dim=1)
        return embedding

    def choose_trainable(self, names: Collection[str]) -> None:
        """Let these parameters of the backbone learn, and no others of it.

        Batch norm keeps its statistics where its own parameters rest. Of a backbone that is frozen for good
        none learns.

        Args:
            names: as `backbone.named_parameters()` has them.
        """
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in names and not self.backbone.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Embedder:
        """As `nn.Module.train`, but batch norm that rests stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules() if mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # One without weights goes with the rest.
                own = list(module.parameters()) or self.backbone.parameters()
                module.train(not self.frozen_batch_norm and any(weight.requires_grad for weight in own))
        return self


def _frozen_copy(backbone: Backbone) -> Backbone:
    frozen = copy.deepcopy(backbone)
    frozen.freeze()
    return frozen
