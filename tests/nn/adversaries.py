"""A small embedder over random feature maps, and what an adversary sees of it."""

import torch

from unseen.nn.adversary import AdversaryInput
from unseen.nn.adversary.strength import constant
from unseen.nn.backbone import FeatureMaps
from unseen.nn.embedder import Embedder
from unseen.nn.fusion import AttentionFusion, tanh_score

TAPS, FINAL, SIZE, CLASSES, IMAGES = [5, 8], 8, 6, 4, 12
FUSED = len(TAPS) * FINAL


class Maps(torch.nn.Module):
    """Stands for a backbone: the feature maps are its parameters."""

    tap_channels = TAPS
    final_channels = FINAL

    def __init__(self):
        super().__init__()
        shapes = [(IMAGES, TAPS[0], 4, 4), (IMAGES, TAPS[1], 2, 2), (IMAGES, FINAL, 2, 2)]
        self.maps = torch.nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, images):
        first, second, final = self.maps
        return FeatureMaps([first, second], final)


def embedder(fusion=None, **settings):
    torch.manual_seed(1)
    attention = {"score": tanh_score, "per_tap": False, "jitter": 0.0}
    fusion = fusion or (lambda **sizes: AttentionFusion(**sizes, **attention))
    plain = {"size": SIZE, "normalize": True, "layer_norm": False}
    plain |= {"readout": "projection", "whitening": None, "frozen_batch_norm": False}
    made = Embedder(Maps(), fusion, **(plain | settings))
    if isinstance(made.fusion, AttentionFusion):
        torch.nn.init.normal_(made.fusion.weights)
    return made


def labels():
    return torch.arange(IMAGES) % CLASSES


def metric(embedding, target):
    """A smooth metric loss: squared cosines of different classes less those of equal ones."""
    cosines = torch.nn.functional.normalize(embedding, dim=1)
    squares = (cosines @ cosines.T).square()
    same = target.unsqueeze(0) == target.unsqueeze(1)
    return squares[~same].mean() - squares[same].mean() + embedding[:, 0].mean()


def batch_of(model, among=None):
    embedded = model(torch.zeros(IMAGES, 3, 1, 1))
    target = labels()
    return AdversaryInput(
        embedded,
        model,
        target,
        metric(embedded.embedding, target),
        metric=lambda embeddings: metric(embeddings, target),
        metric_among=among or (lambda virtual: virtual.embeddings.square().sum()),
    )


def settings(strength=0.5, **changes):
    common = {"hidden": 40, "scale": 2.0, "silent_epochs": 1, "sees": "fused"}
    return common | {"strength": lambda progress: constant(progress, maximum=strength)} | changes
