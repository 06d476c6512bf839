"""The embedded data set: letters of the open fonts that matplotlib ships; some scripts train, others test.

One class is one letter with its look-alikes, one image is that letter in one font face, jittered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import glyph_outlines, glyph_rendering
from unseen.data.sources.glyph_outlines import Outline, Silhouette

SCRIPTS = ("Armenian", "Cyrillic", "Georgian", "Greek", "Lao", "Latin")
"""Scripts with letters in at least `MINIMUM_FACES` faces."""

MINIMUM_FACES = 8
MINIMUM_SIZE = 16

TABLE = "manifest.csv"
DIGEST = "images.sha256"


@dataclass(frozen=True)
class GlyphClass:
    """Letters that look the same (those of training scripts first), and their outline in each font face."""

    letters: tuple[str, ...]
    role: str
    outlines: dict[str, Outline]

    @property
    def name(self) -> str:
        """Code point and Unicode name of the first letter: a folder's name on any file system."""
        return f"U+{ord(self.letters[0]):04X} {unicodedata.name(self.letters[0])}"

    @property
    def script(self) -> str:
        """Script of the first letter."""
        return glyph_outlines.script_of(self.letters[0])


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
        seed: of the jitter.

    Raises:
        ManifestError: an argument is out of its range, or the cache cannot be written.
        FileNotFoundError: matplotlib's fonts are missing.
    """
    _check_scripts(train_scripts, test_scripts)
    _check_numbers(size, images_per_face, jitter)
    files = glyph_outlines.font_files()
    fonts = glyph_outlines.fonts_digest(files)
    scripts = (*sorted(train_scripts), "|", *sorted(test_scripts))
    choices = (glyph_rendering.VERSION, fonts, scripts, size, images_per_face, float(jitter), seed)
    folder = Path(root).expanduser() / hashlib.sha256(repr(choices).encode()).hexdigest()[:16]
    cached = _load(folder)
    if cached is not None:
        return cached
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the finished set is moved, not copied; what is left in it goes with it.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".drawing-") as temporary:
            drawn = Path(temporary) / folder.name
            classes = glyph_classes(train_scripts, test_scripts)
            manifest = _draw(classes, drawn, folder, size, images_per_face, jitter, seed)
            _publish(drawn, folder)
    except OSError as error:
        raise ManifestError(
            f"data.root='{root}' cannot hold the glyphs ({error}). "
            "Name a folder that can be written: data.root=<folder>"
        ) from error
    return manifest


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


def _check_numbers(size: int, images_per_face: int, jitter: float) -> None:
    if size < MINIMUM_SIZE:
        raise ManifestError(f"data.image_size={size}: letters need at least {MINIMUM_SIZE} pixels.")
    if images_per_face < 1:
        raise ManifestError(f"data.images_per_face={images_per_face}: wanted 1 or more.")
    if not 0 <= jitter <= 1:
        raise ManifestError(f"data.jitter={jitter}: wanted a number from 0 to 1.")


def glyph_classes(train_scripts: Sequence[str], test_scripts: Sequence[str]) -> list[GlyphClass]:
    """Classes in the order of their first code points.

    A class with a letter of a training script trains, whatever its other letters: what looks like a shape
    that was trained on is no test of unseen ones.
    """
    everything = glyph_outlines.read_outlines(glyph_outlines.font_files(), {*train_scripts, *test_scripts})
    outlines = {letter: faces for letter, faces in everything.items() if len(faces) >= MINIMUM_FACES}
    silhouettes = {
        letter: {face: glyph_outlines.silhouette(outline) for face, outline in faces.items()}
        for letter, faces in outlines.items()
    }
    groups = [
        sorted(group, key=lambda letter: (glyph_outlines.script_of(letter) not in train_scripts, letter))
        for group in glyph_outlines.look_alikes(silhouettes)
    ]
    classes = [
        GlyphClass(
            letters=tuple(letters),
            role="train" if glyph_outlines.script_of(letters[0]) in train_scripts else "test",
            outlines={face: outlines[letter][face] for letter, face in drawn},
        )
        for letters, drawn in zip(groups, _faces_to_draw(groups, silhouettes), strict=True)
        if len(drawn) >= MINIMUM_FACES
    ]
    return sorted(classes, key=lambda glyph: glyph.letters)


def _faces_to_draw(
    groups: Sequence[Sequence[str]], silhouettes: Mapping[str, Mapping[str, Silhouette]]
) -> list[list[tuple[str, str]]]:
    """The (letter, face) pairs that stand for each group: in each face the first letter that it has.

    What a group repeats (an oblique face that is upright after all) counts once, and what two groups share
    (some italics) not at all.
    """
    shapes = []
    for letters in groups:
        letter_of = {face: letter for letter in reversed(letters) for face in silhouettes[letter]}
        pairs = [(letter, face) for face, letter in letter_of.items()]
        shapes.append({silhouettes[letter][face].tobytes(): (letter, face) for letter, face in pairs})
    owners = Counter(shape for own in shapes for shape in own)
    return [[pair for shape, pair in own.items() if owners[shape] == 1] for own in shapes]


def _draw(
    classes: Sequence[GlyphClass],
    folder: Path,
    final: Path,
    size: int,
    images_per_face: int,
    jitter: float,
    seed: int,
) -> Manifest:
    """Write images, table and digest into `folder`; the manifest already speaks of the `final` one."""
    rows = [
        (label, face, index)
        for label, glyph in enumerate(classes)
        for face in sorted(glyph.outlines)
        for index in range(images_per_face)
    ]
    manifest = Manifest(
        root=final,
        paths=tuple(f"{classes[label].name}/{face}_{index}.png" for label, face, index in rows),
        labels=np.array([label for label, _, _ in rows]),
        class_names=tuple(glyph.name for glyph in classes),
        roles=np.array([classes[label].role for label, _, _ in rows]),
        super_classes=tuple(classes[label].script for label, _, _ in rows),
    )
    for glyph in classes:
        (folder / glyph.name).mkdir(parents=True)
    steps = track(
        zip(rows, manifest.paths, strict=True),
        "Drawing glyphs",
        total=len(rows),
        transient=True,
        update_period=0.5,
    )
    for (label, face, _), path in steps:
        key = f"{seed}/{path}"
        image = glyph_rendering.render(classes[label].outlines[face], size, key, jitter)
        Image.fromarray(image).save(folder / path, compress_level=1)
    manifest.save(folder / TABLE)
    (folder / DIGEST).write_text(_digest(folder, manifest.paths) + "\n")
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
        is_whole = _digest(folder, manifest.paths) == (folder / DIGEST).read_text().strip()
    except (OSError, ManifestError):
        return None
    return manifest if is_whole else None


def _publish(drawn: Path, folder: Path) -> None:
    """Move a finished set to its place, where another process may put its own, or a broken one may lie."""
    while True:
        try:
            os.replace(drawn, folder)
            return
        except OSError:
            if _load(folder) is not None:
                return
            if not folder.is_dir():
                raise
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, Path(tempfile.mkdtemp(dir=drawn.parent)) / "broken")
