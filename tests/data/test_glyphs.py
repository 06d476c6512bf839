"""The embedded letters: what is a class, who trains, the same pixels everywhere, a cache for accidents."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import multiprocessing
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import glyph_outlines, glyph_rendering, glyphs

CONFIG = Path(__file__).parents[2] / "conf" / "data" / "glyphs.yaml"
SMALL: dict[str, Any] = {
    "size": 24,
    "train_scripts": ["Armenian"],
    "test_scripts": ["Lao"],
    "images_per_face": 1,
    "jitter": 1.0,
    "seed": 0,
}
# Of the fonts of matplotlib 3.9 to 3.11, and of the pixels that SMALL makes of them.
KNOWN_FONTS = "02545a7e19112dd305b3219f271574ac296081698287d54e53eb129dda3a9ad1"
KNOWN_PIXELS = "2f1316aa05719cc38e140ef30cd34a240d9837d857ebb4b28220c9c0666aa37c"

glyph_classes = glyphs.glyph_classes


def pixels_of(manifest: Manifest) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(manifest.absolute(row))) for row in range(len(manifest))])


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def polygon(*corners: tuple[float, float]) -> NDArray[np.float64]:
    """Directed edges of a closed polygon."""
    points = np.array(corners, dtype=np.float64)
    return np.stack([points, np.roll(points, -1, axis=0)], axis=1)


@pytest.fixture(scope="module", autouse=True)
def few_classes() -> Iterator[None]:
    """Every sixth class only: the fonts are read once, a set is drawn in a fraction of a second."""
    few = glyph_classes(SMALL["train_scripts"], SMALL["test_scripts"])[::6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "glyph_classes", lambda train, test: few)
        yield


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glyphs")
    glyphs.read(root, **SMALL)
    return root


@pytest.fixture
def small(small_root: Path) -> Manifest:
    return glyphs.read(small_root, **SMALL)


@pytest.fixture(scope="module")
def default_classes() -> list[glyphs.GlyphClass]:
    config = OmegaConf.load(CONFIG)
    return glyph_classes(config.train_scripts, config.test_scripts)


@pytest.fixture
def class_of(default_classes: list[glyphs.GlyphClass]) -> dict[str, int]:
    return {letter: label for label, glyph in enumerate(default_classes) for letter in glyph.letters}


# --- classes and roles


def test_there_are_enough_classes_and_images(default_classes: list[glyphs.GlyphClass]) -> None:
    sides = Counter(glyph.role for glyph in default_classes)
    assert sides["train"] >= 250
    assert sides["test"] >= 250
    assert min(len(glyph.outlines) for glyph in default_classes) >= 8
    assert len({glyph.name for glyph in default_classes}) == len(default_classes)


def test_no_letter_of_a_training_script_is_in_a_test_class(default_classes: list[glyphs.GlyphClass]) -> None:
    # By names, which do not come from the script property. A few Latin letters lack it (TURNED CAPITAL F).
    for glyph in default_classes:
        names = " ".join(unicodedata.name(letter) for letter in glyph.letters)
        if glyph.role == "test":
            assert "LATIN" not in names
            assert any(script in names for script in ("ARMENIAN", "CYRILLIC", "GEORGIAN", "GREEK", "LAO"))
    assert sum("LATIN" in glyph.name for glyph in default_classes if glyph.role == "train") > 280


def test_no_letter_is_in_two_classes(default_classes: list[glyphs.GlyphClass]) -> None:
    letters = [letter for glyph in default_classes for letter in glyph.letters]
    assert len(letters) == len(set(letters))


@pytest.mark.parametrize(
    "alike", ["AΑА", "BΒВ", "OΟООoоо", "KΚК", "PΡР", "Cc", "Жж", "Яя", "HН", "iі", "ƏӘ", "hһ"]
)
def test_look_alikes_are_one_class(class_of: dict[str, int], alike: str) -> None:
    assert len({class_of[letter] for letter in alike}) == 1


@pytest.mark.parametrize(
    "different",
    [
        "OQ",
        "CG",
        "EF",
        "IT",
        "PR",
        "bd",
        "pq",
        "un",
        "ЛП",
        "ШЩ",
        "ЗЭ",
        "БВ",
        "ΩO",
        "ΔΛ",
        "ИН",
        "ΨΦ",
        "ას",
    ],
)
def test_different_letters_are_different_classes(class_of: dict[str, int], different: str) -> None:
    assert len({class_of[letter] for letter in different}) == len(different)


def test_a_class_that_spans_both_sides_trains_under_the_name_of_its_training_letter(
    default_classes: list[glyphs.GlyphClass], class_of: dict[str, int]
) -> None:
    # U+03B4 δ comes first by code point, but its look-alike U+1E9F ẟ is Latin.
    delta = default_classes[class_of["δ"]]
    assert (delta.role, delta.name) == ("train", "U+1E9F LATIN SMALL LETTER DELTA")
    assert len(delta.outlines) > 8, "faces without the Latin letter show the Greek one"


def test_the_side_follows_the_scripts() -> None:
    roles = {glyph.name: glyph.role for glyph in glyph_classes(["Georgian", "Lao"], ["Armenian"])}
    assert roles["U+10D0 GEORGIAN LETTER AN"] == roles["U+0E81 LAO LETTER KO"] == "train"
    assert roles["U+0531 ARMENIAN CAPITAL LETTER AYB"] == "test"


def test_manifest_tells_roles_scripts_and_readable_names(small: Manifest) -> None:
    for row in range(len(small)):
        name = small.class_names[small.labels[row]]
        letter = chr(int(name.split()[0][2:], 16))
        assert name == f"U+{ord(letter):04X} {unicodedata.name(letter)}"
        script = unicodedata.name(letter).split()[0].title()
        assert small.super_classes is not None
        assert small.super_classes[row] == script
        assert small.roles[row] == {"Armenian": "train", "Lao": "test"}[script]
        assert small.paths[row].startswith(name + "/")


# --- look-alikes of shapes made by hand

SQUARE = glyph_outlines.silhouette(polygon((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)))
ALMOST = glyph_outlines.silhouette(polygon((-0.5, -0.45), (0.5, -0.45), (0.5, 0.45), (-0.5, 0.45)))
HALF = glyph_outlines.silhouette(polygon((-0.5, -0.25), (0.5, -0.25), (0.5, 0.25), (-0.5, 0.25)))


def test_shapes_within_the_tolerance_are_alike() -> None:
    shapes = {"a": {"face": SQUARE}, "b": {"face": ALMOST}, "c": {"face": HALF}}
    assert glyph_outlines.look_alikes(shapes) == [["a", "b"], ["c"]]


@pytest.mark.parametrize(("alike", "groups"), [(2, [["a", "b"]]), (1, [["a"], ["b"]])])
def test_half_of_the_shared_faces_decide(alike: int, groups: list[list[str]]) -> None:
    faces = [f"face{index}" for index in range(4)]
    shapes = {
        "a": dict.fromkeys(faces, SQUARE),
        "b": {face: SQUARE if index < alike else HALF for index, face in enumerate(faces)},
    }
    assert glyph_outlines.look_alikes(shapes) == groups


def test_letters_without_a_common_face_are_not_alike() -> None:
    assert glyph_outlines.look_alikes({"a": {"one": SQUARE}, "b": {"two": SQUARE}}) == [["a"], ["b"]]


# --- filling and drawing


def test_fill_covers_the_area() -> None:
    corners = np.array([(3.2, 4.1), (27.9, 9.3), (11.4, 28.6)])
    (x0, y0), (x1, y1), (x2, y2) = corners
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
    covered = glyph_outlines.fill(polygon(*corners.tolist()), 32, samples=8)
    assert covered.sum() == pytest.approx(area, rel=0.01)
    assert covered.shape == (32, 32)


def test_fill_is_by_winding_number() -> None:
    outer = polygon((2, 2), (14, 2), (14, 14), (2, 14))
    inner = polygon((4, 4), (8, 4), (8, 8), (4, 8))
    with_hole = glyph_outlines.fill(np.concatenate([outer, inner[::-1, ::-1]]), 16)
    overlapping = glyph_outlines.fill(np.concatenate([outer, inner]), 16)
    assert with_hole.sum() == 12 * 12 - 4 * 4
    assert with_hole[5, 5] == 0
    assert overlapping.sum() == 12 * 12


def test_fill_clips_what_lies_outside() -> None:
    covered = glyph_outlines.fill(polygon((-50, 4), (50, 4), (50, 8), (-50, 8)), 16)
    np.testing.assert_array_equal(covered.sum(axis=1), [16 if 4 <= row < 8 else 0 for row in range(16)])


def test_outlines_are_the_letters_that_freetype_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "gΩЖაԱກǼ"  # A composite glyph too.
    monkeypatch.setattr(glyph_outlines, "is_base_letter", letters.__contains__)
    outlines = glyph_outlines.read_outlines(glyph_outlines.font_files(), glyphs.SCRIPTS)
    assert sorted(outlines) == sorted(letters)
    for letter, path in itertools.product(letters, glyph_outlines.font_files()):
        if path.stem not in outlines[letter]:
            continue
        canvas = Image.new("L", (400, 400))
        font = ImageFont.truetype(path, 200, layout_engine=ImageFont.Layout.BASIC)
        ImageDraw.Draw(canvas).text((100, 50), letter, fill=255, font=font)
        box = canvas.getbbox()
        assert box is not None
        side = max(box[2] - box[0], box[3] - box[1])
        ours = Image.fromarray(glyph_outlines.fill(outlines[letter][path.stem] * side + 200, 400) * 255)
        drawn, filled = (
            np.pad(np.asarray(image.crop(image.convert("L").getbbox())) > 127, 4) for image in (canvas, ours)
        )
        assert np.abs(np.subtract(drawn.shape, filled.shape)).max() <= 3, (letter, path.name)
        height, width = np.minimum(drawn.shape, filled.shape)
        drawn, filled = drawn[:height, :width], filled[:height, :width]
        # FreeType fits stems to whole pixels: up to three away, and nowhere further.
        for one, other in ((drawn, filled), (filled, drawn)):
            assert not (one & ~binary_dilation(other, iterations=4)).any(), (letter, path.name)


def test_no_image_is_blank_and_no_two_are_the_same(default_classes: list[glyphs.GlyphClass]) -> None:
    outlines = [outline for glyph in default_classes for outline in glyph.outlines.values()]
    clean = np.stack([glyph_rendering.render(outline, 48, "", 0) for outline in outlines])
    assert len({image.tobytes() for image in clean}) == len(clean) > 7000
    ink = 1 - clean.mean(axis=(1, 2, 3)) / 255
    assert ink.min() > 0.03
    assert ink.max() < 0.7
    # The letter reaches neither border: nothing is cut off.
    assert (clean[:, [0, -1]] == 255).all()
    assert (clean[:, :, [0, -1]] == 255).all()


def test_jittered_images_keep_their_contrast(small: Manifest) -> None:
    grey = pixels_of(small).astype(np.float64).mean(axis=-1)
    assert len({image.tobytes() for image in grey}) == len(grey)
    assert (np.percentile(grey, 99, axis=(1, 2)) - np.percentile(grey, 1, axis=(1, 2))).min() > 40


def test_images_per_face_differ_in_jitter_and_keep_the_first(small: Manifest, tmp_path: Path) -> None:
    more = glyphs.read(tmp_path, **SMALL | {"images_per_face": 2})
    assert len(more) == 2 * len(small)
    pixels = pixels_of(more)
    assert len({image.tobytes() for image in pixels}) == len(pixels)
    np.testing.assert_array_equal(pixels[::2], pixels_of(small))


# --- the same everywhere


def test_pixels_are_the_same_in_every_folder(small: Manifest, tmp_path: Path) -> None:
    again = glyphs.read(tmp_path / "elsewhere", **SMALL)
    assert again.root != small.root
    assert again.content_hash == small.content_hash
    np.testing.assert_array_equal(pixels_of(again), pixels_of(small))


def test_pixels_are_the_known_ones(small: Manifest) -> None:
    """If this fails because the drawing was changed on purpose, raise `glyph_rendering.VERSION` too."""
    if glyph_outlines.fonts_digest(glyph_outlines.font_files()) != KNOWN_FONTS:
        pytest.skip("this matplotlib ships other font files than those whose pixels are known")
    assert hashlib.sha256(pixels_of(small).tobytes()).hexdigest() == KNOWN_PIXELS


def test_another_seed_draws_other_pixels_of_the_same_classes(small: Manifest, small_root: Path) -> None:
    other = glyphs.read(small_root, **SMALL | {"seed": 1})
    assert other.root != small.root
    assert other.class_names == small.class_names
    assert not (pixels_of(other) == pixels_of(small)).all(axis=(1, 2, 3)).any()


# --- the cache


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("went to work")

    monkeypatch.setattr(glyphs, "glyph_classes", fail)
    monkeypatch.setattr(glyph_rendering, "render", fail)


@pytest.mark.usefixtures("no_drawing")
def test_a_second_call_draws_nothing(small_root: Path) -> None:
    before = visible(small_root)
    reordered = SMALL | {"train_scripts": ("Armenian",), "jitter": 1}
    assert glyphs.read(small_root, **reordered).root.name in before
    assert visible(small_root) == before


@pytest.mark.parametrize("accident", ["image cut short", "image missing", "table edited", "digest missing"])
def test_a_broken_cache_is_drawn_again(small: Manifest, tmp_path: Path, accident: str) -> None:
    first = glyphs.read(tmp_path, **SMALL)
    if accident == "image cut short":
        first.absolute(5).write_bytes(first.absolute(5).read_bytes()[:40])
    elif accident == "image missing":
        first.absolute(5).unlink()
    elif accident == "table edited":
        table = first.root / glyphs.TABLE
        table.write_text(table.read_text().replace(",test,", ",train,"))
    else:
        (first.root / glyphs.DIGEST).unlink()
    again = glyphs.read(tmp_path, **SMALL)
    assert again.content_hash == small.content_hash
    np.testing.assert_array_equal(pixels_of(again), pixels_of(small))
    assert visible(tmp_path) == [again.root.name]


def test_a_cache_of_other_fonts_or_of_an_older_version_is_not_used(
    small_root: Path, small: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyph_rendering, "VERSION", glyph_rendering.VERSION + 1)
    newer = glyphs.read(small_root, **SMALL)
    monkeypatch.setattr(glyph_outlines, "fonts_digest", lambda files: "other")
    assert len({small.root, newer.root, glyphs.read(small_root, **SMALL).root}) == 3


def test_an_interrupted_drawing_leaves_nothing(
    small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> Iterator[None]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", interrupt)  # After the images, before the set is whole.
        with pytest.raises(KeyboardInterrupt):
            glyphs.read(tmp_path, **SMALL)
    assert visible(tmp_path) == []
    assert pixels_of(glyphs.read(tmp_path, **SMALL)).shape == pixels_of(small).shape


def test_a_set_that_another_process_finished_first_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Manifest.save

    def overtaken(manifest: Manifest, path: Path) -> None:
        monkeypatch.setattr(Manifest, "save", save)
        first = glyphs.read(tmp_path, **SMALL)
        (first.root / "first").touch()
        save(manifest, path)

    monkeypatch.setattr(Manifest, "save", overtaken)
    second = glyphs.read(tmp_path, **SMALL)
    assert (second.root / "first").exists()
    assert visible(tmp_path) == [second.root.name]


def read_in_process(root: Path) -> tuple[str, str]:
    manifest = glyphs.read(root, **SMALL)
    return manifest.content_hash, hashlib.sha256(pixels_of(manifest).tobytes()).hexdigest()


def test_two_processes_at_once_get_the_same_whole_set(small: Manifest, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map(read_in_process, [tmp_path, tmp_path], chunksize=1)
    wanted = (small.content_hash, hashlib.sha256(pixels_of(small).tobytes()).hexdigest())
    assert results == [wanted, wanted]
    assert len(visible(tmp_path)) == 1


# --- errors and configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_scripts": ["Latn"]}, r"data\.train_scripts holds 'Latn'.*Armenian, Cyrillic"),
        ({"test_scripts": []}, r"data\.test_scripts holds \[\]"),
        (
            {"test_scripts": ["Lao", "Armenian"]},
            "'Armenian' is in data.train_scripts and in data.test_scripts",
        ),
        ({"size": 8}, r"data\.image_size=8.*at least 16"),
        ({"images_per_face": 0}, r"data\.images_per_face=0.*1 or more"),
        ({"jitter": 1.5}, r"data\.jitter=1\.5.*0 to 1"),
    ],
)
@pytest.mark.usefixtures("no_drawing")
def test_wrong_arguments_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        glyphs.read(tmp_path, **SMALL | change)


@pytest.mark.usefixtures("no_drawing")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match=r"data\.root='.*file'.*data\.root=<folder>"):
        glyphs.read(tmp_path / "file", **SMALL)


def test_missing_fonts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyph_outlines.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Reinstall matplotlib"):
        glyphs.read(tmp_path, **SMALL)


def test_the_configuration_names_every_argument_and_uses_all_scripts() -> None:
    config = OmegaConf.load(CONFIG)
    assert set(config.source) - {"_target_"} == set(inspect.signature(glyphs.read).parameters)
    assert sorted([*config.train_scripts, *config.test_scripts]) == list(glyphs.SCRIPTS)
