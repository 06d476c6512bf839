"""Every choice of `transforms` keeps bytes, gives the size asked for, and evaluates in one way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from unseen.data.transforms import Transforms, resized_center

CONF = Path(__file__).parents[2] / "conf" / "transforms"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))


def choice(name: str, image_size: int) -> Transforms:
    config = OmegaConf.create({"data": {"image_size": image_size}})
    config.transforms = OmegaConf.load(CONF / f"{name}.yaml")
    return instantiate(config.transforms)


def picture(height: int, width: int) -> Tensor:
    small = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("height", "width"), [(40, 70), (300, 200), (32, 32), (1, 9)])
def test_images_come_out_square_and_as_bytes(name: str, height: int, width: int) -> None:
    transforms = choice(name, 32)
    for transform in (transforms.train, transforms.evaluation):
        image = transform(picture(height, width))
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8


@pytest.mark.parametrize("name", CHOICES)
def test_training_varies_with_torchs_generator_alone_and_evaluation_does_not(name: str) -> None:
    transforms, image = choice(name, 32), picture(60, 80)
    original = image.clone()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        np.random.seed(drawn != [])  # noqa: NPY002 (must not matter)
        drawn.append(transforms.train(image))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2]) == (name == "none")
    assert torch.equal(transforms.evaluation(image), transforms.evaluation(image))
    assert torch.equal(image, original), "the image itself was changed, which a cache would keep"


def test_the_standard_recipe_is_resize_256_and_centre_crop_224() -> None:
    image = picture(375, 500)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((341, 256), Image.Resampling.BILINEAR)
    left, top = (341 - 224) // 2, (256 - 224) // 2
    expected = np.asarray(resized)[top : top + 224, left : left + 224].astype(int)
    got = choice("standard", 224).evaluation(image).permute(1, 2, 0).numpy().astype(int)
    # Pillow and torchvision round differently by a level, and may place an odd crop one pixel apart.
    shifted = np.asarray(resized)[top : top + 224, left + 1 : left + 225].astype(int)
    assert min(np.abs(got - expected).max(), np.abs(got - shifted).max()) <= 2


@pytest.mark.parametrize(
    ("name", "size", "side"), [("standard", 224, 256), ("standard", 256, 293), ("whole", 224, 224)]
)
def test_the_side_that_evaluation_resizes_to_is_known(name: str, size: int, side: int) -> None:
    assert choice(name, size).evaluated_side == side


def test_without_resizing_the_side_is_that_of_the_result() -> None:
    assert Transforms(nn.Identity(), v2.CenterCrop(20)).evaluated_side == 20


def test_characters_are_never_mirrored() -> None:
    """A mark in the left half stays there, however it is turned and shifted."""
    image = torch.full((3, 48, 48), 128, dtype=torch.uint8)
    image[:, 18:30, 8:16] = 255
    transforms = choice("glyphs", 48)
    for seed in range(40):
        torch.manual_seed(seed)
        marked = (transforms.train(image)[0] > 190).nonzero()
        assert len(marked) > 40
        assert marked[:, 1].float().mean() < 24


@pytest.mark.parametrize("name", [name for name in CHOICES if name not in ("glyphs", "none")])
def test_photographs_are_mirrored_half_of_the_time(name: str) -> None:
    transforms, image = choice(name, 16), picture(16, 16)
    image = torch.arange(16, dtype=torch.uint8).mul(16).expand(3, 16, 16)
    rising = 0
    for seed in range(60):
        torch.manual_seed(seed)
        row = transforms.train(image)[0].float().mean(0)
        rising += bool(row[8:].sum() > row[:8].sum())
    assert 15 <= rising <= 45


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("size", [0, -8])
def test_sizes_below_one_are_refused(name: str, size: int) -> None:
    with pytest.raises(Exception, match=rf"data\.image_size={size}: wanted at least 1"):
        choice(name, size)


def test_an_enlargement_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resize=0\.5: wanted at least 1"):
        resized_center(32, 0.5)
