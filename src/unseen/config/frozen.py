"""What does not go with a backbone that never learns."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unseen.nn.adversary.gradients import GradientAdversary
from unseen.nn.embedder import Embedder
from unseen.nn.regularizer import Regularizer

log = logging.getLogger(__name__)

RATE = "optimizer.learning_rates.backbone"
IDLE = {"choices.trainable": "all", "averaging.trained": 1, "optimizer.l2_sp": 0, "optimizer.layer_decay": 1}
"""What a learning backbone may be told, and the value with which it is told nothing."""


def check_frozen(config: DictConfig) -> None:
    """Refuse settings of the backbone's learning.

    Raises:
        ValueError: naming both keys.
    """
    epochs = config.optimizer.get("frozen_backbone_epochs")
    if epochs:
        raise ValueError(
            f"backbone.frozen=true with optimizer.frozen_backbone_epochs={epochs}: a frozen backbone never "
            "learns. Set optimizer.frozen_backbone_epochs=0, or backbone.frozen=false to let it learn after "
            "these epochs."
        )
    for key, idle in IDLE.items():
        value = OmegaConf.select(config, key)
        if value is not None and value != idle:
            raise ValueError(
                f"backbone.frozen=true with {key.removeprefix('choices.')}={value}: that is for a backbone "
                f"that learns. Set it to {idle}, or backbone.frozen=false."
            )
    rate = next((one for one in config.overrides if str(one).startswith(f"{RATE}=")), None)
    if rate is not None:
        raise ValueError(
            f"backbone.frozen=true with {rate}: a frozen backbone never learns. Leave the rate out, or set "
            "backbone.frozen=false."
        )


def check_sees_maps(regularizer: Regularizer | None) -> None:
    """Refuse a regulariser that looks at the images.

    Raises:
        ValueError: it does.
    """
    if regularizer is not None and regularizer.sees_images:
        raise ValueError(
            f"backbone.frozen=true with {type(regularizer).__name__}: it sees the images, and training sees "
            "their feature maps alone. Set regularizer=none, or trainable=none and backbone.frozen=false."
        )


def warn_of_untrained(embedder: Embedder, weights: str, rests: str) -> None:
    """Of what may be meant as a control, and is seldom wanted.

    Args:
        embedder: its backbone does not learn.
        weights: `backbone.weights`.
        rests: what was typed for that.
    """
    if weights == "none":
        log.warning(
            "%s with backbone.weights=none: the backbone stays random. Give it pretrained weights: "
            "backbone.weights=timm, or a file.",
            rests,
        )
    if embedder.readout is not None and not _learns(embedder):
        log.warning(
            "%s with embedding.readout=features: nothing learns before the features that are deployed, so "
            "training does not change them. Set embedding.readout=projection, or choose a fusion that learns "
            "(fusion=attention).",
            rests,
        )


def check_reach(adversary: Any, embedder: Embedder, rests: str) -> None:
    """Refuse an adversary whose gradient at the features reaches nothing that learns.

    Args:
        adversary: any, or none.
        embedder: its backbone does not learn.
        rests: what was typed for that.

    Raises:
        ValueError: naming the keys.
    """
    if isinstance(adversary, GradientAdversary) and adversary.sees == "fused" and not _learns(embedder):
        raise ValueError(
            f"{rests} with an adversary at the fused features ({type(adversary).__name__}): "
            "nothing learns before them. Choose a fusion that learns (fusion=attention), "
            "adversary.sees=embedding, or adversary=none."
        )


def _learns(embedder: Embedder) -> bool:
    """Whether anything before the fused features does, the backbone aside."""
    return any(True for _ in embedder.fusion.parameters())
