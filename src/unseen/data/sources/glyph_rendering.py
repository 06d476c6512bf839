"""An outline as an image: seeded geometric and photometric jitter, the same pixels on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from unseen.data.sources.glyph_outlines import Outline, fill

VERSION = 1
"""Raise it with every change that moves a pixel: caches of an older version are then not used."""

# Ranges at jitter 1.
ROTATION = math.radians(10)
SHEAR = 0.12
STRETCH = 0.12
EXTENT = (0.7, 0.9)
SHIFT = 0.6
BLUR = 1
WEIGHT = 0.15
SHADE = 0.25
LIGHTING = 0.1
NOISE = 0.08


def render(outline: Outline, size: int, key: str, jitter: float) -> NDArray[np.uint8]:
    """Draw one image `(size, size, 3)`; `key` seeds it, `jitter` 0 is black on white, upright and centred."""
    uniform = _Uniform(key)
    placed = _place(outline, size, uniform, jitter)
    ink = _pen(fill(placed, size), uniform, jitter)
    return _develop(ink, uniform, jitter)


class _Uniform:
    """Uniform numbers in [0, 1) from the raw stream of PCG64, which NumPy keeps the same for ever."""

    def __init__(self, key: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))

    def __call__(self, *shape: int) -> NDArray[np.float64]:
        raw = self._bits.random_raw(math.prod(shape)).reshape(shape)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def around_zero(self) -> float:
        return float(2 * self(1)[0] - 1)


def _place(outline: Outline, size: int, uniform: _Uniform, jitter: float) -> NDArray[np.float64]:
    """Rotate, shear and stretch; then fit the result into the image at a random size and place. In pixels."""
    angle = jitter * ROTATION * uniform.around_zero()
    shear = jitter * SHEAR * uniform.around_zero()
    stretch = 1 + jitter * STRETCH * uniform.around_zero()
    x, y = outline[..., 0] * stretch, outline[..., 1] / stretch
    x = x + shear * y
    x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
    extent = size * (EXTENT[1] - jitter * (EXTENT[1] - EXTENT[0]) * float(uniform(1)[0]))
    scale = extent / max(np.ptp(x), np.ptp(y))
    return np.stack(
        [_put(axis * scale, size, jitter * SHIFT * uniform.around_zero()) for axis in (x, y)], axis=-1
    )


def _put(positions: NDArray[np.float64], size: int, shift: float) -> NDArray[np.float64]:
    """Place along one axis: a shift of −1 touches the first border, 0 is the middle, 1 touches the last."""
    middle = (positions.min() + positions.max()) / 2
    free = (size - np.ptp(positions)) / 2
    return positions - middle + size / 2 + shift * free


def _pen(ink: NDArray[np.float64], uniform: _Uniform, jitter: float) -> NDArray[np.float64]:
    """A broader, finer, sharper or softer pen: blur, then another threshold and slope."""
    for _ in range(int((BLUR + 1) * jitter * uniform(1)[0])):
        ink = _blur(_blur(ink).T).T
    weight = jitter * WEIGHT * uniform.around_zero()
    slope = 1 + jitter * float(uniform(1)[0])
    return np.clip((ink - 0.5 + weight) * slope + 0.5, 0, 1)


def _blur(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.concatenate([ink[:1], ink, ink[-1:]])
    return (padded[:-2] + 2 * ink + padded[2:]) / 4


def _develop(ink: NDArray[np.float64], uniform: _Uniform, jitter: float) -> NDArray[np.uint8]:
    """Colours, light from one side, noise."""
    size = len(ink)
    dark, light = jitter * SHADE * uniform(3), 1 - jitter * SHADE * uniform(3)
    ground, letter = (dark, light) if uniform(1)[0] < jitter / 2 else (light, dark)
    image = ground + ink[..., None] * (letter - ground)
    slope = np.linspace(-1, 1, size)
    sun = (uniform.around_zero() * slope[:, None] + uniform.around_zero() * slope) * jitter * LIGHTING
    noise = (uniform(size, size, 3) - uniform(size, size, 3)) * (jitter * NOISE * float(uniform(1)[0]))
    return np.rint(255 * np.clip(image + sun[..., None] + noise, 0, 1)).astype(np.uint8)
