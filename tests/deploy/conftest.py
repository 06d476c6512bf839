"""A model without a network: what is around it is tested in milliseconds."""

import numpy as np
import pytest
import torch
from PIL import Image

import unseen
from unseen.data.transforms import resized_center
from unseen.deploy.model import Model


class Colours:
    """Embeds an image by its mean colour; as fast as it is simple."""

    size = 3

    def __init__(self, bundle="b" * 64):
        self.facts = {"bundle": bundle}
        self.batches = []

    def prepare(self, pixels):
        return torch.from_numpy(pixels).permute(2, 0, 1)[:, :8, :8].float()

    def embed_prepared(self, batch):
        self.batches.append(len(batch))
        return torch.nn.functional.normalize(batch.mean((2, 3)), dim=1)


@pytest.fixture
def colours():
    return Colours


@pytest.fixture
def network():
    """A real model that nobody trained."""
    torch.manual_seed(0)
    embedder = unseen.embedder("resnet10", weights="none", image_size=32, fusion="attention", size=8)
    embedder.readout = None
    return Model(embedder.requires_grad_(False).eval(), resized_center(32, 1.0), {"bundle": "b" * 64})


@pytest.fixture
def photos(tmp_path):
    """Twelve images of three classes, and one that is none."""
    generator = np.random.default_rng(0)
    for label in ("bee", "fly", "owl"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(4):
            pixels = np.broadcast_to(generator.integers(0, 256, 3), (10, 10, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    (tmp_path / "photos" / "owl" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"
