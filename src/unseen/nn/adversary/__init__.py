"""The class adversary (CANN): a classifier of the seen classes against which the embedder is trained.

`contract` says what all forms share; each other file is one form, with its controls.
"""

from unseen.nn.adversary.attention import AdversarialAttention
from unseen.nn.adversary.complementary import ComplementaryEvidence
from unseen.nn.adversary.contract import (
    AdversaryInput,
    AdversaryOutput,
    ClassAdversary,
    CosineHead,
    VirtualClasses,
)
from unseen.nn.adversary.erasure import Erasure
from unseen.nn.adversary.gradients import Auxiliary, Confusion, GradientReversal, RandomGradient
from unseen.nn.adversary.masking import EvidenceMasking, TapMasking
from unseen.nn.adversary.projection import PosteriorConfusion, ProjectionConfusion
from unseen.nn.adversary.shared import SharedCharacteristics
from unseen.nn.adversary.strength import Strength, constant, dann, linear
from unseen.nn.adversary.virtual_classes import AdversarialVirtualClasses

__all__ = [
    "AdversarialAttention",
    "AdversarialVirtualClasses",
    "AdversaryInput",
    "AdversaryOutput",
    "Auxiliary",
    "ClassAdversary",
    "ComplementaryEvidence",
    "Confusion",
    "CosineHead",
    "Erasure",
    "EvidenceMasking",
    "GradientReversal",
    "PosteriorConfusion",
    "ProjectionConfusion",
    "RandomGradient",
    "SharedCharacteristics",
    "Strength",
    "TapMasking",
    "VirtualClasses",
    "constant",
    "dann",
    "linear",
]
