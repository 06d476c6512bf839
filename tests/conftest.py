"""What several rooms' tests need: a tiny set of images that a tiny network can learn."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def coloured_tree(tmp_path_factory):
    """Eight classes of noise, eight images each; every class has a colour of its own."""
    root = tmp_path_factory.mktemp("coloured")
    generator = np.random.default_rng(0)
    for label in range(8):
        (root / f"class {label}").mkdir()
        colour = generator.integers(40, 216, 3)
        for index in range(8):
            pixels = (colour + generator.normal(0, 25, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class {label}" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tiny_run(coloured_tree):
    """Overrides of the smallest run that still learns."""
    return [
        "data=folder",
        f"data.root={coloured_tree}",
        "backbone=resnet10",
        "optimizer=scratch",
        "transforms=whole",
        "data.image_size=32",
        "data.workers=0",
        "callbacks=quiet",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]
