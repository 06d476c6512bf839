"""The embedded data set: letters of the open fonts that matplotlib ships; some scripts train, others test.

One class is one letter with its look-alikes, one image is that letter in one font face, jittered.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, features
from rich.progress import track
from scipy.ndimage import maximum_filter
from scipy.sparse.csgraph import connected_components

from unseen.data.manifest import Manifest, ManifestError
from unseen.files import exclusive_lock

log = logging.getLogger(__name__)

VERSION = 2
"""Raise it with every change that moves a pixel: caches of an older version are then not used."""

SCRIPTS = ("Armenian", "Cyrillic", "Georgian", "Greek", "Lao", "Latin")
"""Scripts with letters in at least `MINIMUM_FACES` faces."""
MINIMUM_FACES, MINIMUM_SIZE = 8, 16

FACES = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*")
"""Faces whose code points can be trusted: the Computer Modern and the other STIX faces follow encodings of
their own, and `LastResortHE` shows a placeholder for every code point."""

EM, SHAPE, TOLERANCE = 256, 52, 3
"""Pixels: the em at which shapes are drawn (large, for FreeType moves stems by up to one), their larger side
when they are compared, and how far their ink may then lie apart: more than the strokes of O and o, less than
the dot of an i or the bar of a Q."""

# Jitter: ranges at 1.
ROTATION, SHEAR, STRETCH = math.radians(10), 0.12, 0.12
EXTENT, SHIFT = (0.7, 0.9), 0.6
BLUR, WEIGHT = 0.8, 0.15
SHADE, LIGHTING, NOISE = 0.25, 0.1, 0.08

TABLE, DIGEST = "manifest.csv", "images.sha256"


class Glyph(NamedTuple):
    """A class: letters that look the same (those of training scripts first), and which is drawn in a face."""

    letters: tuple[str, ...]
    role: str
    letter_of_face: dict[str, str]

    @property
    def name(self) -> str:
        """Code point and Unicode name of the first letter: a folder's name on any file system."""
        return f"U+{ord(self.letters[0]):04X} {unicodedata.name(self.letters[0])}"


def read(
    root: str | os.PathLike[str],
    *,
    size: int,
    train_scripts: Sequence[str],
    test_scripts: Sequence[str],
    images_per_face: int,
    jitter: float,
    seed: int,
) -> Manifest:
    """Draw the glyphs, or find them where an earlier call has drawn them. Super-classes are scripts.

    Args:
        root: folder of the cache; every choice of fonts and of the arguments below has its own folder in it.
        size: height and width of the images in pixels.
        train_scripts: names out of `SCRIPTS`.
        test_scripts: names out of `SCRIPTS`, none of them a training script.
        images_per_face: images of each class in each font face; they differ in their jitter.
        jitter: 0 (black on white, upright, centred) to 1 (rotated, sheared, shifted, coloured, noisy).
        seed: of the jitter, 0 or more.

    Raises:
        ManifestError: an argument is out of its range, or the cache cannot be written.
        FileNotFoundError: matplotlib's fonts are missing.
    """
    _check_scripts(train_scripts, test_scripts)
    for key, value, fits, wanted in (
        ("image_size", size, size >= MINIMUM_SIZE, f"at least {MINIMUM_SIZE} pixels, to be legible"),
        ("images_per_face", images_per_face, images_per_face >= 1, "1 or more"),
        ("jitter", jitter, 0 <= jitter <= 1, "a number from 0 to 1"),
        ("jitter_seed", seed, seed >= 0, "0 or more"),
    ):
        if not fits:
            raise ManifestError(f"data.{key}={value}: wanted {wanted}.")
    files = font_files()
    drawn_with: list[object] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    drawn_with += [VERSION, features.version("pil"), features.version("freetype2")]
    scripts = (sorted(train_scripts), sorted(test_scripts))
    choices = (drawn_with, scripts, size, images_per_face, float(jitter), seed)
    base = Path(root).expanduser().absolute()
    folder = base / hashlib.sha256(repr(choices).encode()).hexdigest()[:16]
    if cached := _load(folder):
        return cached
    _check_own(base)
    lock = folder.with_suffix(".lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(
            lock, lambda: log.info("Waiting for another process that draws glyphs: '%s'", lock)
        ):
            if cached := _load(folder):
                return cached
            classes = glyph_classes(train_scripts, test_scripts)
            # Inside the cache, so that the whole set is moved, not copied.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".drawing-") as temporary:
                drawn = Path(temporary) / folder.name
                manifest = _draw(classes, drawn, folder, size, images_per_face, jitter, seed)
                shutil.rmtree(folder, ignore_errors=True)  # if it is there, it is broken
                os.replace(drawn, folder)
            return manifest
    except OSError as error:
        raise ManifestError(
            f"data.root='{root}' cannot hold the glyphs ({error}). "
            "Name a folder that can be written: data.root=<folder>"
        ) from error


def _check_own(root: Path) -> None:
    """Refuse a folder of something else, such as images of the user's that were meant to be trained on."""
    ours = re.compile(r"[0-9a-f]{16}(\.lock)?|\..*")  # the system may hide files in any folder
    strange = [path.name for path in root.iterdir() if not ours.fullmatch(path.name)] if root.is_dir() else []
    if strange:
        raise ManifestError(
            f"data.root='{root}' holds something else already ('{min(strange)}'), and data=glyphs would draw "
            f"its letters there. To train on your own images: data=folder data.root={root}"
        )


def _check_scripts(train_scripts: Sequence[str], test_scripts: Sequence[str]) -> None:
    for key, scripts in (("train_scripts", train_scripts), ("test_scripts", test_scripts)):
        unknown = [script for script in scripts if script not in SCRIPTS]
        if unknown or not scripts:
            got = f"'{unknown[0]}'" if unknown else "[]"
            raise ManifestError(f"data.{key} holds {got}. Wanted a list out of {', '.join(SCRIPTS)}.")
    both = sorted(set(train_scripts) & set(test_scripts))
    if both:
        raise ManifestError(
            f"Script '{both[0]}' is in data.train_scripts and in data.test_scripts. Remove it from one."
        )


def font_files() -> list[Path]:
    """The font files to draw from, by name.

    Raises:
        FileNotFoundError: matplotlib was installed without them.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(path for pattern in FACES for path in folder.glob(f"{pattern}.ttf"))
    if not files:
        raise FileNotFoundError(
            f"'{folder}' holds none of the fonts that data=glyphs draws ({', '.join(FACES)}). "
            "Reinstall matplotlib."
        )
    return files


def fonts(em: int) -> dict[str, ImageFont.FreeTypeFont]:
    """The font of each face. Without the shaping of complex scripts, which not every Pillow has."""
    return {path.stem: ImageFont.truetype(path, em, ImageFont.Layout.BASIC) for path in font_files()}


def script_of(letter: str) -> str:
    """Latin, Greek, …: the first word of a letter's Unicode name."""
    return unicodedata.name(letter, "?").split()[0].title()


def letters_of(scripts: Collection[str]) -> list[str]:
    """The letters in their own right, in code point order.

    Modifier letters, and letters with separable marks, are not: Ǘ is a U with ¨ and ´, and hundreds of such
    classes would be the same few shapes, told apart by a few pixels.
    """
    characters = map(chr, range(0x10000))
    letters = [one for one in characters if unicodedata.category(one) in ("Lu", "Ll", "Lo")]
    return [one for one in letters if script_of(one) in scripts and not unicodedata.decomposition(one)]


def ink_of(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """A letter, white on black, without margins; what a font shows in place of letters that it lacks."""
    left, top, right, bottom = map(int, font.getbbox(letter))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), letter, fill=255, font=font)
    return image.crop(image.getbbox())


def glyph_classes(train_scripts: Collection[str], test_scripts: Collection[str]) -> list[Glyph]:
    """Training classes, then the others, each in the order of their first code points.

    A class with a letter of a training script trains, whatever its other letters: what looks like a shape
    that was trained on is no test of unseen ones. A shape that comes again, in another face (an oblique one
    that is upright after all) or class (some italics), is drawn once.
    """
    faces = fonts(EM)
    letters = [letter for scripts in (train_scripts, test_scripts) for letter in letters_of(scripts)]
    shapes = np.stack([_shapes(font, letters) for font in faces.values()])
    common = shapes.any(axis=(2, 3)).sum(axis=0) >= MINIMUM_FACES
    letters, shapes = [letters[one] for one in np.flatnonzero(common)], shapes[:, common]
    groups = look_alikes(shapes)
    drawn = {np.zeros_like(shapes[0, 0]).tobytes()}
    classes = []
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group)
        letter_of_face = {}
        for face, shape in zip(faces, shapes[:, members], strict=True):
            first = int(shape.any(axis=(1, 2)).argmax())
            if shape[first].tobytes() not in drawn:
                drawn.add(shape[first].tobytes())
                letter_of_face[face] = letters[members[first]]
        alike = tuple(letters[one] for one in members)
        role = "train" if script_of(alike[0]) in train_scripts else "test"
        if len(letter_of_face) >= MINIMUM_FACES:
            classes.append(Glyph(alike, role, letter_of_face))
    return classes


def _shapes(font: ImageFont.FreeTypeFont, letters: Sequence[str]) -> NDArray[np.bool_]:
    """`(N, S, S)`: where the ink is, at the size and with the margin with which shapes are compared."""
    side = SHAPE + 2 * (TOLERANCE + 1)
    shapes = np.zeros((len(letters), side, side), dtype=np.bool_)
    missing = ink_of(font, "\U0010ffff")
    for shape, letter in zip(shapes, letters, strict=True):
        ink = ink_of(font, letter)
        if ink != missing and ink.size != (0, 0):
            shape[:] = np.asarray(_centred(ink, SHAPE, side)) > 127
    return shapes


def _centred(ink: Image.Image, extent: int, side: int, shift: Sequence[float] = (0, 0)) -> Image.Image:
    """Scale the larger side to `extent` and place it; a shift of −1 or 1 touches a border of the square."""
    ink = ImageOps.contain(ink, (extent, extent))
    left, top = (round((side - n) / 2 * (1 + by)) for n, by in zip(ink.size, shift, strict=True))
    square = Image.new("L", (side, side))
    square.paste(ink, (left, top))
    return square


def look_alikes(shapes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Group letters that look the same, whatever their size: A with Greek Α and Cyrillic А, C with c.

    Two are alike if, in at least half of the faces that have both, no ink of one is further than the
    tolerance from ink of the other (their Hausdorff distance, by the larger of the two axes). Whatever is
    alike to one member of a group belongs to it.

    Args:
        shapes: `(F, N, S, S)`, in F faces of N letters; without ink where a face lacks the letter.

    Returns:
        `(N,)`: the number of each letter's group.
    """
    count = shapes.shape[1]
    alike, shared = np.zeros((2, count, count), dtype=np.int64)
    for face in shapes:
        far = ~maximum_filter(face, size=(1, 2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
        ink, far = (part.reshape(count, -1).astype(np.float32) for part in (face, far))
        fits = ink @ far.T == 0
        both = np.outer(ink.any(axis=1), ink.any(axis=1))
        alike += fits & fits.T & both
        shared += both
    groups: NDArray[np.int64] = connected_components((shared > 0) & (2 * alike >= shared), directed=False)[1]
    return groups


def _draw(
    classes: Sequence[Glyph],
    folder: Path,
    final: Path,
    size: int,
    images_per_face: int,
    jitter: float,
    seed: int,
) -> Manifest:
    """Write images, table and digest into `folder`; the manifest already speaks of the `final` one."""
    rows = [
        (label, face, f"{glyph.name}/{face}_{index}.png")
        for label, glyph in enumerate(classes)
        for face in glyph.letter_of_face
        for index in range(images_per_face)
    ]
    manifest = Manifest(
        root=final,
        paths=tuple(path for _, _, path in rows),
        labels=np.array([label for label, _, _ in rows]),
        class_names=tuple(glyph.name for glyph in classes),
        roles=np.array([classes[label].role for label, _, _ in rows]),
        super_classes=tuple(script_of(classes[label].letters[0]) for label, _, _ in rows),
    )
    faces = fonts(2 * size)
    for glyph in classes:
        (folder / glyph.name).mkdir(parents=True)
    for label, face, path in track(rows, "Drawing glyphs", transient=True, update_period=0.5):
        ink = ink_of(faces[face], classes[label].letter_of_face[face])
        random = np.random.default_rng([seed, *path.encode()])
        Image.fromarray(render(ink, size, jitter, random)).save(folder / path, compress_level=1)
    manifest.save(folder / TABLE)
    (folder / DIGEST).write_text(_digest(folder, manifest.paths))
    return manifest


def _digest(folder: Path, paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256((folder / path).read_bytes()).digest())
    return digest.hexdigest()


def _load(folder: Path) -> Manifest | None:
    """What was drawn into `folder`, if it is there and whole."""
    try:
        manifest = Manifest.load(folder / TABLE, root=folder)
        is_whole = _digest(folder, manifest.paths) == (folder / DIGEST).read_text()
    except (OSError, ManifestError):
        return None
    return manifest if is_whole else None


def render(ink: Image.Image, size: int, jitter: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image `(size, size, 3)`; `jitter` 0 is black on white, upright and centred."""

    def around_zero(extent: float) -> float:
        return jitter * extent * random.uniform(-1, 1)

    # Rotate, shear and stretch; then scale and place.
    angle, shear, stretch = around_zero(ROTATION), around_zero(SHEAR), 1 + around_zero(STRETCH)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ [[stretch, shear / stretch], [0, 1 / stretch]])
    side = round(1.5 * max(ink.size))
    offset = np.array(ink.size) / 2 - back @ [side / 2, side / 2]
    ink = ink.transform(
        (side, side), Image.Transform.AFFINE, np.c_[back, offset].ravel().tolist(), Image.Resampling.BILINEAR
    )
    extent = EXTENT[1] - jitter * random.uniform(0, EXTENT[1] - EXTENT[0])
    shift = around_zero(SHIFT), around_zero(SHIFT)
    placed = _centred(ink.crop(ink.getbbox()), round(size * extent), size, shift)

    # A broader, finer, sharper or softer pen.
    soft = placed.filter(ImageFilter.GaussianBlur(jitter * random.uniform(0, BLUR)))
    slope = 1 + jitter * random.uniform()
    pen = np.clip((np.asarray(soft) / 255 - 0.5 + around_zero(WEIGHT)) * slope + 0.5, 0, 1)

    # Colours, light from one side, noise.
    dark, light = jitter * SHADE * random.uniform(size=3), 1 - jitter * SHADE * random.uniform(size=3)
    ground, letter = (dark, light) if random.uniform() < jitter / 2 else (light, dark)
    across = np.linspace(-1, 1, size)
    sun = around_zero(LIGHTING) * across[:, None] + around_zero(LIGHTING) * across
    noise = jitter * random.uniform(0, NOISE) * random.triangular(-1, 0, 1, (size, size, 3))
    image = ground + pen[..., None] * (letter - ground) + sun[..., None] + noise
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
