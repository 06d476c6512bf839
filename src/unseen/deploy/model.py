"""A trained embedder with the preparation of its images: pictures in, embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unseen.data.images import read_image
from unseen.data.pixels import ConvertedImages, to_pixels
from unseen.data.sources.layout import find_images
from unseen.nn.embedder import Embedder


@dataclass(frozen=True)
class Model:
    """What is deployed.

    Args:
        embedder: in evaluation mode.
        preparation: `(3, H, W)` uint8 → `(3, S, S)`, as in evaluation.
        facts: what the bundle says of it: `metrics`, `split`, `weights` and more; empty outside a bundle.
    """

    embedder: Embedder
    preparation: nn.Module
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        """Dimensions of an embedding."""
        return int(self.embedder.projection.out_features)

    def to(self, device: str | torch.device) -> Model:
        """The same model on another device."""
        return Model(self.embedder.to(device), self.preparation, self.facts)

    def embed(self, images: Any, batch_size: int = 64) -> Tensor:
        """Embed images as the run's evaluation did.

        Args:
            images: a folder, whose images are taken in the order of `images_of`; a sequence of paths, PIL
                images or arrays of any size; or an array or tensor `(N, H, W, 3)` or `(N, 3, H, W)`.
            batch_size: images at a time.

        Returns:
            `(N, d)` float32 on the CPU.

        Raises:
            ValueError: there is no image, or one cannot be read.
        """
        if isinstance(images, str | Path):
            images = images_of(images)
        device = next(self.embedder.parameters()).device
        prepared = (self.preparation(torch.from_numpy(one).permute(2, 0, 1)) for one in _pixels(images))
        found = [self._embedded(batch, device) for batch in _batches(prepared, batch_size)]
        if not found:
            raise ValueError("There are no images to embed.")
        return torch.cat(found)

    @torch.inference_mode()
    def _embedded(self, batch: Tensor, device: torch.device) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return self.embedder(batch.to(device)).embedding.float().cpu()


def images_of(folder: str | Path) -> list[Path]:
    """All images below a folder, found as `data=folder` finds them, sorted by path.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder. For single files give a list: [path].")
    return [folder / path for path in find_images(folder, folder)]


def _batches(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    remaining = iter(images)
    while some := list(islice(remaining, size)):
        yield torch.stack(some)


def _pixels(images: Any) -> Iterator[Any]:
    if hasattr(images, "ndim"):
        converted = ConvertedImages(images)
        yield from (converted[row] for row in range(len(images)))
        return
    for image in images:
        yield read_image(Path(image)) if isinstance(image, str | Path) else to_pixels(image)
