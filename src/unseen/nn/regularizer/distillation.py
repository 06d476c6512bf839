"""Keeping what pretrained networks know: images shall relate as in the features of frozen teachers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unseen.nn.backbone import FINAL, Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.regularizer.contract import MakeLoss, Regularizer, RegularizerInput, check_strength
from unseen.nn.regularizer.relations import Relation


class Distillation(Regularizer):
    """`λ · mean over teachers of relation(student, GAP(teacher's final map))`.

    Relational, as the teacher's features have other dimensions than what is taught (Park et al. 2019). By
    default the teacher is the backbone itself as it is before training. Several teachers count the same, as
    relations of different networks have no common space in which features could be averaged.

    Each teacher costs a forward pass in every step and lies in each checkpoint.

    Args:
        embedder: whose backbone is copied.
        loss: not used.
        strength: λ.
        relation: see `unseen.nn.regularizer.relations`.
        into: what is taught: the `embedding` that the loss sees, or the `fused` features.
        own: whether the backbone as it is before training is a teacher.
        others: timm's name of a network → its weights, `timm` or a file; they see images of the same size.

    Raises:
        ValueError: there is no teacher, λ is not positive, `into` is unknown, or as `Backbone`.
    """

    sees_images = True

    def __init__(
        self,
        embedder: Embedder,
        loss: MakeLoss,
        *,
        strength: float,
        relation: Relation,
        into: Literal["embedding", "fused"],
        own: bool,
        others: Mapping[str, str],
    ) -> None:
        super().__init__()
        check_strength(strength)
        if into not in ("embedding", "fused"):
            raise ValueError(f"regularizer.into={into}: choices are embedding, fused.")
        if not (own or others):
            raise ValueError("regularizer.own=false and regularizer.others={}: there is no teacher.")
        self.strength, self.relation, self.into = strength, relation, into
        teachers: list[nn.Module] = [copy.deepcopy(embedder.backbone)] if own else []
        teachers += [
            _teacher(model, weights, embedder.backbone.image_size) for model, weights in others.items()
        ]
        self.teachers = nn.ModuleList(teachers).requires_grad_(False).eval()

    def forward(self, batch: RegularizerInput) -> Tensor:
        """See the class."""
        embedded = batch.embedded
        student = embedded.embedding if self.into == "embedding" else embedded.fused.features
        with torch.no_grad():
            features = [batch.all_rows(teacher(batch.images).final.mean((2, 3))) for teacher in self.teachers]
        terms = [self.relation(student, taught) for taught in features]
        return self.strength * torch.stack(terms).mean()

    def train(self, mode: bool = True) -> Distillation:
        """Teachers stay in evaluation mode."""
        super().train(mode)
        self.teachers.eval()
        return self


def _teacher(model: str, weights: str, image_size: int) -> Backbone:
    plain: dict[str, Any] = {"mean": None, "std": None, "options": None, "frozen": True}
    return Backbone(model, image_size=image_size, taps=[FINAL], weights=weights, **plain)
