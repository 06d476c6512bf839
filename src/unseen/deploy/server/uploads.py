"""What a stranger sends → pixels, or a refusal in words: limited in bytes, pixels, shape, time and type."""

from __future__ import annotations

import asyncio
import io

from PIL import Image
from starlette.requests import ClientDisconnect, Request

from unseen.data.images import Pixels, passes
from unseen.data.pixels import to_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Recognised by content. Pillow reads many more; each decoder is a door."""
MOST_BYTES = 20_000_000
MOST_PIXELS = 50_000_000
MOST_TIMES = 20
"""Longer to shorter side: the preparation would blow a strip of one pixel up to billions."""
SECONDS = 30
"""For a body to arrive."""


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        sentence: why, for people.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Refused: it is empty, too large, takes too long, or whoever sends it goes away.
    """
    too_large = Refused(413, f"The image is too large: at most {MOST_BYTES // 1_000_000} MB are taken.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MOST_BYTES:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"The image did not arrive within {SECONDS} seconds.") from None
    except ClientDisconnect:
        # Nobody reads it, but it is no failure of the server either, which would be printed.
        raise Refused(400, "The connection ended before the whole image had arrived.") from None
    if not content:
        raise Refused(422, "There is no image: send one as the body, or name one of the gallery by ?id=.")
    return bytes(content)


def decode(content: bytes) -> Pixels:
    """An image as RGB, upright, as `read_image` gives it.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        Refused: it is of another type, broken, or of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_shape(*image.size)
            image.load()
            return to_pixels(image)
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Image.UnidentifiedImageError:
        names = ", ".join(FORMATS).replace("WEBP", "WebP")
        raise Refused(415, f"This is no image of a type that is taken: {names}.") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        if passes(error):
            raise Refused(503, "The server has no memory for this image now; try again later.") from error
        raise Refused(422, "The image is broken: it cannot be decoded.") from None


def _check_shape(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise _too_many_pixels()
    if max(width, height) > MOST_TIMES * min(width, height):
        raise Refused(
            422,
            f"The image is a strip of {width}×{height} pixels; its longer side may be "
            f"{MOST_TIMES} times the shorter at most.",
        )


def _too_many_pixels() -> Refused:
    return Refused(
        413, f"The image has too many pixels: at most {MOST_PIXELS // 1_000_000} million are taken."
    )
