"""The embedded letters: what is a class, who trains, the same pixels everywhere, a cache for accidents."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import multiprocessing
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from fontTools.unicodedata import script, script_name
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.spatial.distance import cdist

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import glyphs

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "conf" / "data" / "glyphs.yaml"
SMALL: dict[str, Any] = {
    "size": 24,
    "train_scripts": ["Armenian"],
    "test_scripts": ["Lao"],
    "images_per_face": 1,
    "jitter": 1.0,
    "seed": 0,
}

glyph_classes = glyphs.glyph_classes


def pixels_of(manifest: Manifest) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(manifest.absolute(row))) for row in range(len(manifest))])


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


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
def default_classes() -> list[glyphs.Glyph]:
    config = OmegaConf.load(CONFIG)
    return glyph_classes(config.train_scripts, config.test_scripts)


@pytest.fixture
def class_of(default_classes: list[glyphs.Glyph]) -> dict[str, int]:
    return {letter: label for label, glyph in enumerate(default_classes) for letter in glyph.letters}


# --- classes and roles


def test_there_are_enough_classes_and_images(default_classes: list[glyphs.Glyph]) -> None:
    sides = Counter(glyph.role for glyph in default_classes)
    assert sides["train"] >= 250
    assert sides["test"] >= 250
    assert min(len(glyph.letter_of_face) for glyph in default_classes) >= 8
    assert len({glyph.name for glyph in default_classes}) == len(default_classes)


def test_no_letter_of_a_training_script_is_in_a_test_class(default_classes: list[glyphs.Glyph]) -> None:
    # By the code points of the letters, Unicode's own script property as the oracle.
    for glyph in default_classes:
        scripts = {script_name(script(letter)) for letter in glyph.letters}
        assert glyph.role == ("train" if "Latin" in scripts else "test")
        assert scripts <= set(glyphs.SCRIPTS)
    assert sum("LATIN" in glyph.name for glyph in default_classes if glyph.role == "train") > 280


def test_no_letter_is_in_two_classes(default_classes: list[glyphs.Glyph]) -> None:
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
    default_classes: list[glyphs.Glyph], class_of: dict[str, int]
) -> None:
    # U+03B4 δ comes first by code point, but its look-alike U+1E9F ẟ is Latin.
    delta = default_classes[class_of["δ"]]
    assert (delta.role, delta.name) == ("train", "U+1E9F LATIN SMALL LETTER DELTA")
    assert len(delta.letter_of_face) > 8, "faces without the Latin letter show the Greek one"


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


def block(height: int, width: int) -> NDArray[np.bool_]:
    shape = np.zeros((24, 24), dtype=np.bool_)
    shape[12 - height // 2 : 12 + height // 2, 12 - width // 2 : 12 + width // 2] = True
    return shape


SQUARE, ALMOST, HALF, NOTHING = block(16, 16), block(10, 16), block(8, 16), block(0, 0)


def groups_of(*letters: list[NDArray[np.bool_]]) -> list[int]:
    """Group numbers of letters, each given by its shapes in all faces."""
    return glyphs.look_alikes(np.stack([np.stack(letter) for letter in letters], axis=1)).tolist()


def test_shapes_within_the_tolerance_are_alike() -> None:
    assert glyphs.TOLERANCE == 3
    assert groups_of([SQUARE], [ALMOST]) == [0, 0]
    assert groups_of([SQUARE], [HALF]) == groups_of([HALF], [SQUARE]) == [0, 1]


def test_what_is_alike_to_one_of_a_group_belongs_to_it() -> None:
    assert groups_of([SQUARE], [HALF], [ALMOST]) == [0, 0, 0]


def test_look_alikes_follow_the_hausdorff_distance() -> None:
    random = np.random.default_rng(0)
    shapes = binary_dilation(random.random((12, 24, 24)) < 0.006, np.ones((1, 5, 5)))
    points = [np.argwhere(shape) for shape in shapes]
    distance = [[cdist(one, other, "chebyshev").min(axis=1).max() for other in points] for one in points]
    pairs = np.maximum(distance, np.transpose(distance)) <= 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "TOLERANCE", 12)
        got = [[len(set(groups_of([one], [other]))) == 1 for other in shapes] for one in shapes]
    assert 0 < np.triu(pairs, 1).sum() < 66
    np.testing.assert_array_equal(got, pairs)


@pytest.mark.parametrize(("alike", "groups"), [(2, [0, 0]), (1, [0, 1])])
def test_half_of_the_shared_faces_decide(alike: int, groups: list[int]) -> None:
    # In a fifth face only one of the two exists: it has no vote.
    one = [SQUARE] * 5
    other = [SQUARE if face < alike else HALF for face in range(4)] + [NOTHING]
    assert groups_of(one, other) == groups


def test_letters_without_a_common_face_are_not_alike() -> None:
    assert groups_of([SQUARE, NOTHING], [NOTHING, SQUARE]) == [0, 1]


# --- drawing


def test_faces_have_the_letters_that_they_draw(default_classes: list[glyphs.Glyph]) -> None:
    """The oracle is the table of code points in each font file, of which FreeType shows the effect only."""
    coverage = {path.stem: TTFont(path, lazy=True).getBestCmap() for path in glyphs.font_files()}
    drawn = {pair for glyph in default_classes for pair in glyph.letter_of_face.items()}
    assert [pair for pair in drawn if ord(pair[1]) not in coverage[pair[0]]] == []
    letters = {letter for glyph in default_classes for letter in glyph.letters}
    wanted = {
        letter
        for letter in glyphs.letters_of(glyphs.SCRIPTS)
        if sum(ord(letter) in codes for codes in coverage.values()) >= glyphs.MINIMUM_FACES
    }
    assert letters <= wanted
    # Missing: classes with too few shapes of their own.
    assert len(letters) > 0.99 * len(wanted)


@pytest.fixture(scope="module")
def clean(default_classes: list[glyphs.Glyph]) -> NDArray[np.uint8]:
    """All letters in all their faces, without jitter."""
    faces, random = glyphs.fonts(96), np.random.default_rng(0)
    pairs = [pair for glyph in default_classes for pair in glyph.letter_of_face.items()]
    return np.stack([glyphs.render(glyphs.ink_of(faces[face], one), 48, 0, random) for face, one in pairs])


def test_no_image_is_blank_and_no_two_are_the_same(clean: NDArray[np.uint8]) -> None:
    assert len({image.tobytes() for image in clean}) == len(clean) > 7000
    ink = 1 - clean.mean(axis=(1, 2, 3)) / 255
    assert ink.min() > 0.03
    assert ink.max() < 0.7
    # The letter reaches neither border: nothing is cut off.
    assert (clean[:, [0, -1]] == 255).all()
    assert (clean[:, :, [0, -1]] == 255).all()


def test_without_jitter_letters_are_grey_centred_and_of_one_size(clean: NDArray[np.uint8]) -> None:
    assert (clean == clean[..., :1]).all()
    for image in 255 - clean[..., 0]:
        left, top, right, bottom = Image.fromarray(image).point(lambda value: 255 * (value > 40)).getbbox()
        assert abs(left + right - 48) <= 3
        assert abs(top + bottom - 48) <= 3
        assert 40 <= max(right - left, bottom - top) <= 44


def test_jitter_keeps_letters_inside(default_classes: list[glyphs.Glyph]) -> None:
    """Full jitter of the geometry alone, in the tightest place."""
    faces = glyphs.fonts(96)
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in {"SHADE": 0, "LIGHTING": 0, "NOISE": 0, "BLUR": 0, "WEIGHT": 0}.items():
            patch.setattr(glyphs, constant, value)
        for seed, glyph in enumerate(default_classes[::5]):
            face, letter = next(iter(glyph.letter_of_face.items()))
            image = glyphs.render(glyphs.ink_of(faces[face], letter), 48, 1, np.random.default_rng(seed))
            border = np.concatenate([image[[0, -1]].ravel(), image[:, [0, -1]].ravel()])
            assert len(set(border.tolist())) == 1, letter


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


def test_another_seed_draws_other_pixels_of_the_same_classes(small: Manifest, small_root: Path) -> None:
    (small_root / ".DS_Store").touch()  # as whoever looks into the folder on a Mac
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
    monkeypatch.setattr(glyphs, "render", fail)


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
    monkeypatch.setattr(glyphs, "VERSION", glyphs.VERSION + 1)
    newer = glyphs.read(small_root, **SMALL)
    monkeypatch.setattr(glyphs.features, "version", lambda feature: "other")
    other_freetype = glyphs.read(small_root, **SMALL)
    files = glyphs.font_files()
    monkeypatch.setattr(glyphs, "font_files", lambda: files[:-1])
    assert len({small.root, newer.root, other_freetype.root, glyphs.read(small_root, **SMALL).root}) == 4


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


def test_who_waits_for_another_process_takes_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = glyphs.read(tmp_path / "other", **SMALL)
    final = tmp_path / "mine" / other.root.name

    @contextlib.contextmanager
    def wait(lock: Path, when_waiting: Callable[[], None]) -> Iterator[None]:
        shutil.copytree(other.root, final)
        (final / "first").touch()
        yield

    monkeypatch.setattr(glyphs, "exclusive_lock", wait)
    assert glyphs.read(tmp_path / "mine", **SMALL).root == final
    assert (final / "first").exists()


def test_a_cache_that_cannot_be_written_is_read(
    small: Manifest, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(glyphs, "exclusive_lock", fail)
    assert glyphs.read(small_root, **SMALL).content_hash == small.content_hash


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
        ({"seed": -1}, r"data\.jitter_seed=-1.*0 or more"),
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
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Reinstall matplotlib"):
        glyphs.read(tmp_path, **SMALL)


def test_the_configuration_names_every_argument_and_uses_all_scripts() -> None:
    config = OmegaConf.load(CONFIG)
    assert set(config.source) - {"_target_"} == set(inspect.signature(glyphs.read).parameters)
    assert sorted([*config.train_scripts, *config.test_scripts]) == list(glyphs.SCRIPTS)
