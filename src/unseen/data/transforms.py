"""Augmentation in training, preparation in evaluation: torchvision v2 on uint8, `(3, H, W)` → `(3, S, S)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.transforms import v2  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Transforms:
    """The two ways to prepare an image.

    Args:
        train: for training images; draws its random numbers from torch's generator.
        evaluation: for all others; the same result every time.
    """

    train: nn.Module
    evaluation: nn.Module

    @property
    def evaluated_side(self) -> int:
        """Pixels that evaluation makes of an image's shorter side, before it crops: fewer are blown up."""
        steps = (step for step in _steps(self.evaluation) if isinstance(step, v2.Resize))
        resized = [max(step.size) for step in steps if step.size is not None]
        crop: int = self.evaluation(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape[-1]
        return max([crop, *resized])


def _steps(transform: nn.Module) -> Iterator[nn.Module]:
    """A transform and those within it; torchvision's Compose keeps its own in a plain list."""
    yield transform
    for step in (*transform.children(), *getattr(transform, "transforms", ())):
        yield from _steps(step)


def sequence(steps: Sequence[nn.Module]) -> nn.Module:
    """Steps one after another."""
    return v2.Compose(list(steps))


def random_resized_crop(size: int, scale: Sequence[float]) -> nn.Module:
    """A random part of the image, of random aspect (3/4 to 4/3), resized to a square.

    Args:
        size: pixels of the square's side.
        scale: smallest and largest share of the image's area.

    Raises:
        ValueError: the size is below 1, or the shares are not in (0, 1] or not in order.
    """
    _check_size(size)
    smallest, largest = scale
    if not 0 < smallest <= largest <= 1:
        raise ValueError(f"scale={list(scale)}: wanted shares of the area, 0 < smallest ≤ largest ≤ 1.")
    return v2.RandomResizedCrop(size, scale=(smallest, largest), antialias=True)


def resized_center(size: int, resize: float) -> nn.Module:
    """The shorter side to `size × resize` pixels, then the centre square of `size`.

    The field's recipe for 224 pixels is `resize` 256/224.

    Raises:
        ValueError: the size is below 1 or `resize` below 1.
    """
    _check_size(size)
    if resize < 1:
        raise ValueError(f"resize={resize}: wanted at least 1, as the crop is cut from the resized image.")
    return v2.Compose([v2.Resize(round(size * resize), antialias=True), v2.CenterCrop(size)])


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"data.image_size={size}: wanted at least 1 pixel.")
