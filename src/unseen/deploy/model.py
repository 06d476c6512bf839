"""A trained embedder with the preparation of its images: pictures in, embeddings out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from unseen.data.images import Pixels, in_order, read_image
from unseen.data.pixels import ConvertedImages, to_pixels
from unseen.data.sources.layout import find_images
from unseen.nn.allocator import keep_freed_memory
from unseen.nn.embedder import Embedder


class Attention(NamedTuple):
    """Where a network looks in one image.

    Args:
        image: what it sees, resized and cropped, `(S, S, 3)` uint8.
        maps: tap → `(H_l, W_l)`, summing to 1; empty for a fusion without attention.
    """

    image: Pixels
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Model:
    """What is deployed. Several threads may use it.

    Args:
        embedder: in evaluation mode.
        preparation: `(3, H, W)` uint8 → `(3, S, S)`, as in evaluation.
        facts: what the bundle says of it: `metrics`, `split`, `weights` and more; empty outside a bundle.
    """

    embedder: Embedder
    preparation: nn.Module
    facts: dict[str, Any]
    # Taps are caught in the backbone: two images on their way at once would be mixed up.
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Model], tuple[Embedder, nn.Module, dict[str, Any]]]:
        """A copy, or what is sent to another process, has a lock of its own."""
        return Model, (self.embedder, self.preparation, self.facts)

    @property
    def size(self) -> int:
        """Dimensions of an embedding."""
        return int(self.embedder.projection.out_features)

    def to(self, device: str | torch.device) -> Model:
        """The same model on another device.

        Raises:
            ValueError: this machine has no such device.
        """
        return replace(self, embedder=self.embedder.to(as_device(device)))

    def embed(self, images: Any, batch_size: int = 64) -> Tensor:
        """Embed images as the run's evaluation did.

        Args:
            images: a folder, whose images are taken in the order of `images_of`; a sequence of paths, PIL
                images or arrays of any size; or an array or tensor `(N, H, W, 3)` or `(N, 3, H, W)`.
            batch_size: images at a time.

        Returns:
            `(N, d)` float32 on the CPU.

        Raises:
            ValueError: there is no image, one cannot be read, or a number is out of range.
        """
        if isinstance(images, str | Path):
            images = images_of(images)
        _check_several(images)
        found = list(self.embed_batches(len(images), _reader(images), batch_size))
        if not found:
            raise ValueError("There are no images to embed.")
        return torch.cat(found)

    def embed_batches(
        self, count: int, read: Callable[[int], Pixels], batch_size: int = 64
    ) -> Iterator[Tensor]:
        """Embed images `0 … count − 1`, read and prepared by threads while the network computes.

        Args:
            count: of the images.
            read: position → `(H, W, 3)` uint8.
            batch_size: images at a time.

        Yields:
            `(B, d)` float32 on the CPU, in order.

        Raises:
            ValueError: the batch size is no whole number from 1 upwards.
        """

        def prepared(start: int) -> Tensor:
            return torch.stack(
                [self.prepare(read(row)) for row in range(start, min(count, start + batch_size))]
            )

        for batch in in_order(prepared, starts(count, batch_size)):
            yield self.embed_prepared(batch)

    def prepare(self, pixels: Pixels) -> Tensor:
        """`(H, W, 3)` uint8 → `(3, S, S)`, as in evaluation."""
        image: Tensor = self.preparation(torch.from_numpy(pixels).permute(2, 0, 1))
        return image

    @torch.inference_mode()
    def embed_prepared(self, batch: Tensor) -> Tensor:
        """Prepared images `(B, 3, S, S)` → `(B, d)` float32 on the CPU."""
        device = next(self.embedder.parameters()).device
        if device.type == "cpu":
            keep_freed_memory()
        with self._one_at_a_time, torch.autocast(device.type, enabled=False):
            return self.embedder(batch.to(device)).embedding.float().cpu()

    @torch.inference_mode()
    def attention(self, pixels: Pixels) -> Attention:
        """Where the network looks in an image `(H, W, 3)` uint8."""
        prepared = self.prepare(pixels)
        device = next(self.embedder.parameters()).device
        with self._one_at_a_time, torch.autocast(device.type, enabled=False):
            maps = self.embedder(prepared[None].to(device)).fused.attention
        names = self.embedder.backbone.tap_names if maps else ()
        found = {name: one[0].float().cpu().numpy() for name, one in zip(names, maps, strict=True)}
        return Attention(to_pixels(prepared), found)


def starts(count: int, batch_size: int) -> range:
    """Where the batches of `count` images begin.

    Raises:
        ValueError: the batch size is no whole number from 1 upwards.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: wanted a whole number from 1 upwards.")
    return range(0, count, int(batch_size))


def as_device(name: str | torch.device) -> torch.device:
    """A device of this machine.

    Raises:
        ValueError: it has none of this name.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name}: there is no such device. Wanted cpu, cuda, cuda:1 or mps."
        ) from error
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, math.inf):
        raise ValueError(
            f"device={name}: PyTorch {torch.__version__} finds {counts[device.type] or 'none'} of this kind "
            "on this machine. Use device=cpu, or a PyTorch that matches the driver (see nvidia-smi)."
        )
    return device


def default_device() -> str:
    """A GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def images_of(folder: str | Path) -> list[Path]:
    """All images below a folder, found as `data=folder` finds them, sorted by path.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder. For single files give a list: [path].")
    return [folder / path for path in find_images(folder, folder)]


def _check_several(images: Any) -> None:
    """Refuse a single image, whose rows would be taken for images."""
    shape = tuple(getattr(images, "shape", ()))
    is_array = len(shape) == 3 and not {shape[0], shape[-1]}.isdisjoint((1, 3, 4))
    if is_array or isinstance(images, Image.Image):
        raise ValueError("This is one image, and several are wanted: [image].")


def _reader(images: Any) -> Callable[[int], Pixels]:
    """Position → pixels, whatever holds the images."""
    if getattr(images, "ndim", 1) != 1:  # one axis: an array of paths
        return ConvertedImages(images).__getitem__
    known = list(images)

    def read(row: int) -> Pixels:
        image = known[row]
        return read_image(Path(image)) if isinstance(image, str | Path) else to_pixels(image)

    return read
