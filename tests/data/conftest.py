"""Shared by the tests of the data room: small trees of images, and replicas of the published data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Path:
    """Write one image of noise; the suffix chooses the format, `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise[..., :3]).convert(mode) if mode != "RGBA" else Image.fromarray(noise)
    image.save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Mapping[str, int]], Path]:
    """Make a class-per-folder tree: `tree({"wren": 3, "robin": 2})` gives its root."""

    def make(classes: Mapping[str, int]) -> Path:
        root = tmp_path / "tree"
        root.mkdir()
        for position, (name, count) in enumerate(classes.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                write_image(root / name / f"{index}.png", seed=1000 * position + index)
        return root

    return make
