"""What is added to the loss, whichever it is: distillation, mixing of embeddings, uncertainty."""

from unseen.nn.regularizer.contract import MakeLoss, Regularizer, RegularizerInput
from unseen.nn.regularizer.distillation import Distillation
from unseen.nn.regularizer.introspection import Introspection
from unseen.nn.regularizer.mixup import EmbeddingMixup
from unseen.nn.regularizer.relations import Relation, distances, similarities
from unseen.nn.regularizer.self_distillation import SelfDistillation

__all__ = [
    "Distillation",
    "EmbeddingMixup",
    "Introspection",
    "MakeLoss",
    "Regularizer",
    "RegularizerInput",
    "Relation",
    "SelfDistillation",
    "distances",
    "similarities",
]
