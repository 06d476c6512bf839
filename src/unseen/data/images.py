"""Files → RGB pixels: any mode that Pillow reads, upright, optionally cropped to its box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]


class ImageError(ValueError):
    """A file that is no image; the message names it and the remedy."""


def read_image(path: Path, box: NDArray[np.int64] | None = None) -> Pixels:
    """One image as RGB.

    Transparent pixels lie on white, 16-bit grey is scaled to 8 bits, EXIF orientation is applied.

    Args:
        path: file.
        box: optional left, top, right, bottom, in pixels; clipped to the image.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        ImageError: missing, empty, truncated, of no known format, or its box is empty.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(
            f"Image '{path}' cannot be read ({type(error).__name__}: {error}). "
            "Replace or remove it, or set data.on_error=skip."
        ) from error
    pixels = np.asarray(_rgb(upright))
    return pixels if box is None else _crop(pixels, box, path)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        # Pillow opens 16-bit PNGs as 32-bit integers in some versions; larger values are clipped.
        values = np.asarray(image, dtype=np.float64)
        scale = 256.0 if values.max(initial=0) > 255 else 1.0
        image = Image.fromarray((values / scale).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _crop(pixels: Pixels, box: NDArray[np.int64], path: Path) -> Pixels:
    left, top, right, bottom = (max(0, int(edge)) for edge in box)
    cropped = pixels[top:bottom, left:right]
    if cropped.size == 0:
        raise ImageError(
            f"Image '{path}' has the box {tuple(map(int, box))}, outside its {pixels.shape[1]}×{pixels.shape[0]} "
            "pixels. Correct the box, or set data.crop_to_box=false."
        )
    return cropped
