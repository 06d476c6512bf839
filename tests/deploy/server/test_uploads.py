"""What strangers send: of any type, broken, huge, or no image at all."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unseen.deploy.server.uploads import MOST_PIXELS, Refused, decode


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height=40, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_that_says(width, height):
    """A PNG of a few bytes that announces any size."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_types_are_told_by_content(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(noise(), kind, **options))
    assert pixels.shape == (40, 40, 3)
    if kind in ("PNG", "BMP", "WEBP"):
        np.testing.assert_array_equal(pixels, noise())


def test_images_come_upright_opaque_and_in_colour():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(noise(20, 40), "JPEG", exif=exif)).shape == (40, 20, 3)
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    assert decode(encoded(clear)).min() == 255
    assert decode(encoded(noise()[..., 0])).shape == (40, 40, 3)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "TGA", "ICO", "PDF"])
def test_other_types_are_refused(kind):
    with pytest.raises(Refused, match="JPEG, PNG, WebP, BMP, GIF") as caught:
        decode(encoded(noise(), kind))
    assert caught.value.status == 415


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    "content", [b"\0", b"GIF89a", b"not an image", SVG, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(Refused) as caught:
        decode(content)
    assert caught.value.status in (415, 422)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_broken_images_are_refused_in_words(kind):
    whole = encoded(noise(), kind)
    generator = np.random.default_rng(0)
    attempts = [whole[: len(whole) * share // 8] for share in range(1, 8)]
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 20):
            damaged[place] = generator.integers(256)
        attempts.append(bytes(damaged))
    refused = []
    for content in attempts:
        try:
            assert decode(content).ndim == 3
        except Refused as error:
            refused.append(error)
    assert refused
    assert {error.status for error in refused} <= {413, 415, 422}
    assert all(error.sentence.endswith(".") for error in refused)


@pytest.mark.parametrize("size", [(7100, 7100), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_decoded(size):
    assert size[0] * size[1] > MOST_PIXELS
    with pytest.raises(Refused) as caught:
        decode(png_that_says(*size))
    assert caught.value.status in (413, 422)


def test_a_strip_would_be_blown_up_by_the_preparation():
    with pytest.raises(Refused, match="a strip of 40000×1 pixels") as caught:
        decode(encoded(noise(1, 40000)))
    assert caught.value.status == 422
    assert decode(encoded(noise(1, 1))).shape == (1, 1, 3)
