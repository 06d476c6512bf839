"""Whatever holds an image → RGB pixels: Pillow's, arrays and tensors of any layout, encoded bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unseen.data.images import ImageError, PassingError, Pixels, passes, require_shape, to_rgb, upright


class ConvertedImages:
    """Images that something else holds, made RGB when they are asked for; picklable if that is.

    Args:
        items: row → an image, a pair `(image, …)` or a mapping.
        key: of the image in a mapping.
    """

    def __init__(self, items: Any, key: str = "image") -> None:
        self.items = items
        self.key = key
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Pixels:
        """`(H, W, 3)` uint8.

        Raises:
            ImageError: the data set fails on it, or gives something that is no image.
            PassingError: memory, the disk or permissions are the cause.
        """
        try:
            return to_pixels(_image_of(self.items[row], self.key))
        except Exception as error:  # anything, as it is someone else's data set
            kind = PassingError if passes(error) else ImageError
            raise kind(
                f"Image {row} of {len(self)} cannot be read ({type(error).__name__}: {error}). "
                "Correct or remove it, or set data.on_error=skip."
            ) from error


def to_pixels(image: Any) -> Pixels:
    """Any image as RGB.

    Args:
        image: Pillow's; `{"bytes": …}` or `{"path": …}`; or an array or tensor `(H, W)`, `(H, W, C)` or
            `(C, H, W)` with C one of 1, 3, 4, of whole numbers 0 … 255 or floating-point numbers 0 … 1.

    Returns:
        `(H, W, 3)` uint8, contiguous and writable.

    Raises:
        ValueError: shape or values are of no image.
        TypeError: neither is its type.
    """
    if isinstance(image, Mapping) and (image.get("bytes") or image.get("path")):
        image = Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"])
    if isinstance(image, Image.Image):
        return require_shape(np.array(to_rgb(upright(image))))
    if isinstance(image, torch.Tensor):
        return require_shape(_from_array(image.detach().cpu().numpy(), channels_first=True))
    if isinstance(image, np.ndarray):
        return require_shape(_from_array(image, channels_first=False))
    raise TypeError(f"got a {type(image).__name__} where an image is wanted: Pillow's, an array or a tensor")


def _from_array(image: NDArray[Any], channels_first: bool) -> Pixels:
    channels = (1, 3, 4)
    first, last = (image.ndim == 3 and image.shape[axis] in channels for axis in (0, -1))
    if image.ndim != 2 and not (first or last):
        raise ValueError(
            f"an image has shape {image.shape}; wanted (H, W), (H, W, C) or (C, H, W) with C one of 1, 3, 4"
        )
    if first and (channels_first or not last):
        image = image.transpose(1, 2, 0)
    pixels = _eight_bits(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 4:
        return np.array(to_rgb(Image.fromarray(pixels)))
    grey = pixels.reshape(*pixels.shape[:2], -1)
    return np.array(np.broadcast_to(grey, (*grey.shape[:2], 3)), order="C")


def _eight_bits(values: NDArray[Any]) -> Pixels:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    floating = np.issubdtype(values.dtype, np.floating)
    top = 1 if floating else 255
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= top):  # so written that NaN is refused
        raise ValueError(
            f"{values.dtype} values go from {low:g} to {high:g}; wanted 0 … {top}. Give images as they are, "
            "not normalised (the backbone does that), and scale them to the range of their type"
        )
    return (values.astype(np.float64) * 255).round().astype(np.uint8) if floating else values.astype(np.uint8)


def _image_of(item: Any, key: str) -> Any:
    if isinstance(item, Mapping):
        if key in item:
            return item[key]
        raise ValueError(f"it has the keys {', '.join(map(str, item))}; wanted '{key}'")
    return item[0] if isinstance(item, tuple | list) and len(item) else item
