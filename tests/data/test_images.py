"""Any mode becomes RGB by a stated rule; a file that is no image is named."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from unseen.data.images import Files, ImageError, PassingError, attempt, in_order, read_image
from unseen.data.manifest import Manifest
from unseen.data.pixels import to_pixels

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def saved(path: Path, image: Image.Image, **options: object) -> NDArray[np.uint8]:
    image.save(path, **options)
    return read_image(path)


def grey(values: list[list[float]], dtype: str) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=dtype))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"]
)
def test_every_mode_that_a_file_can_have_becomes_three_channels_of_bytes(tmp_path: Path, mode: str) -> None:
    pixels = saved(tmp_path / "image.tif", Image.new(mode, (5, 3)))
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


def test_colours_stay_what_they_are(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(image)), image)
    few = Image.fromarray(image // 128 * 255)
    np.testing.assert_array_equal(saved(tmp_path / "b.png", few.convert("P")), np.asarray(few))
    np.testing.assert_array_equal(
        saved(tmp_path / "c.png", Image.fromarray(image[..., 0])), image[..., [0] * 3]
    )
    red = saved(tmp_path / "d.jpg", Image.new("RGB", (8, 8), RED).convert("CMYK"), quality=100)
    assert np.abs(red.astype(int) - RED).max() <= 3


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = saved(tmp_path / "rgba.png", Image.new("RGBA", (1, 1), (*RED, 128)))
    assert np.abs(half[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    assert saved(tmp_path / "la.png", Image.new("LA", (1, 1), (0, 0))).tolist() == [[[255] * 3]]
    # One colour of an image without an alpha channel may be declared transparent, in any mode.
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 0)
    for image, key in ((palette, 1), (Image.new("RGB", (1, 1), RED), RED), (Image.new("L", (1, 1), 7), 7)):
        pixels = saved(tmp_path / f"{image.mode}.png", image, transparency=key)
        assert pixels[0, 0].tolist() == list(WHITE), image.mode
    assert saved(tmp_path / "palette.png", palette, transparency=1)[0, 1].tolist() == list(RED)
    deep = saved(tmp_path / "deep.png", grey([[1000, 1001]], "uint16"), transparency=1000)
    assert deep[0, :, 0].tolist() == [255, 3]


def test_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    pixels = saved(tmp_path / "deep.png", grey([[0, 255, 256, 40_000, 65_535]], "uint16"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 156, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25_600, 65_535], [0, 100, 255]),
        ([-5, 25_600, 1_000_000], [0, 100, 255]),
        ([0.0, 0.5, 1.0], [0, 127, 255]),
    ],
)
def test_thirty_two_bits_take_white_from_their_range(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    dtype = "float32" if isinstance(values[0], float) else "int32"
    assert saved(tmp_path / "wide.tif", grey([values], dtype))[0, :, 0].tolist() == expected


def test_values_that_are_none_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ImageError, match="NaN or infinite values"):
            saved(tmp_path / "wide.tif", grey([[0.0, 0.5, value]], "float32"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((4, 6, 3), dtype=np.uint8)
    upright[0, 0], upright[0, 5] = RED, GREEN
    # What a camera stores under each orientation, by the tag's definition of row 0 and column 0.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = saved(tmp_path / "photo.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels, upright)
    # Pillow turns a TIFF when it is loaded, not when it is opened.
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.tif", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.tif"), upright)
    with Image.open(tmp_path / "photo.tif") as photo:
        np.testing.assert_array_equal(to_pixels(photo), upright)


def test_a_wrong_tag_beside_the_orientation_does_no_harm(tmp_path: Path) -> None:
    # A width that is text: two entries of 12 bytes in a directory that starts at byte 8.
    directory = struct.pack("<HHHIHHHHI4s", 2, 0x0112, 3, 1, 6, 0, 0x0100, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    assert saved(tmp_path / "a.jpg", Image.new("RGB", (16, 8)), exif=exif).shape == (16, 8, 3)


def test_a_box_cuts_the_upright_image_and_is_clipped_to_it(tmp_path: Path) -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(image[::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", np.array([2, 1, 5, 3])), image[1:3, 2:5])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", np.array([-3, 2, 99, 99])), image[2:])
    for empty in ([3, 1, 3, 2], [6, 0, 9, 4], [-5, 0, 0, 4]):
        with pytest.raises(ImageError, match=r"a\.png' has the box .* none of its 6×4 pixels"):
            read_image(tmp_path / "a.png", np.array(empty))


def test_a_strip_is_refused_unless_a_box_is_cut_out_of_it(tmp_path: Path) -> None:
    assert saved(tmp_path / "a.png", Image.new("RGB", (400, 2))).shape == (2, 400, 3)
    with pytest.raises(ImageError, match=r"b\.png' cannot be read .*it has 1×201 pixels"):
        saved(tmp_path / "b.png", Image.new("RGB", (1, 201)))
    assert read_image(tmp_path / "b.png", np.array([0, 5, 1, 9])).shape == (4, 1, 3)


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN)]
    pixels = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert pixels.tolist() == [[list(RED)] * 2] * 2


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow reads no WebP")
def test_formats_beside_jpeg_and_png_are_read(tmp_path: Path) -> None:
    pixels = saved(tmp_path / "a.webp", Image.new("RGBA", (2, 2), (*RED, 255)), lossless=True)
    assert pixels.tolist() == [[list(RED)] * 2] * 2


def broken_files(folder: Path) -> list[Path]:
    whole = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    contents = {
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "cut.jpg": whole.read_bytes()[:1500],
        "header.png": b"\x89PNG\r\n\x1a\n",
        "lying.bmp": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 9, 9, 1, 24) + bytes(24),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return [folder / name for name in [*contents, "folder.png", "missing.png"]]


def test_what_is_no_image_is_named_with_a_remedy(tmp_path: Path) -> None:
    for path in broken_files(tmp_path):
        with pytest.raises(ImageError) as raised:
            read_image(path)
        assert str(path) in str(raised.value)
        assert "data.on_error=skip" in str(raised.value)


@pytest.mark.parametrize(
    "failure",
    [
        *(MemoryError(), TimeoutError("timed out"), ConnectionError("the other side has left")),
        *(OSError(number, "x") for number in (errno.EMFILE, errno.ENOMEM, errno.EIO, errno.EACCES)),
    ],
)
@pytest.mark.parametrize("moment", ["open", "load"])
def test_what_is_the_machines_fault_is_not_blamed_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, moment: str
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    manifest = Manifest(tmp_path, ("a.png",), np.array([0]), ("a",), np.array(["train"]))

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(*((Image, "open", fail) if moment == "open" else (Image.Image, "convert", fail)))
    with pytest.raises(PassingError, match=r"a\.png' cannot be read now .*ulimit -n") as raised:
        attempt(Files(manifest), 0)
    assert raised.value.__cause__ is failure


def test_files_are_read_by_row_and_cut_where_there_are_boxes(tmp_path: Path) -> None:
    for name, colour in (("a.png", RED), ("b.png", GREEN)):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    manifest = Manifest(
        tmp_path,
        ("a.png", "b.png"),
        np.array([0, 1]),
        ("a", "b"),
        np.array(["train", "test"]),
        boxes=np.array([[0, 0, 4, 4], [0, 0, 3, 1]]),
    )
    files = Files(manifest)
    assert len(files) == 2
    assert files[0].shape == (4, 4, 3)
    assert files[1].tolist() == [[list(GREEN)] * 3]


def test_threads_keep_the_order_and_raise_what_was_raised() -> None:
    assert list(in_order(lambda row: row * row, range(50))) == [row * row for row in range(50)]
    results = in_order(lambda row: 1 // (3 - row), range(9))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
