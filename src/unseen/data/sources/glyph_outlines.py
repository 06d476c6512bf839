"""Letters as outlines: what the open fonts that matplotlib ships hold, and which letters look the same."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from fontTools.unicodedata import script, script_name
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.sparse.csgraph import connected_components

FACES = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*")
"""Faces whose code points can be trusted: the Computer Modern and the other STIX faces follow encodings of
their own, and `LastResortHE` shows a placeholder for every code point."""

CURVE_STEPS = 6
"""Straight pieces a curve is made of; at a hundred pixels a glyph the error is below a tenth of a pixel."""

COMPARISON_SIZE = 44
"""Pixels of the larger side of a glyph when shapes are compared."""

COMPARISON_TOLERANCE = 3
"""Shapes are alike if no ink of one is further than this many of those pixels from ink of the other: more
than the strokes of O and o differ at equal size, less than a bar, a tail or a hook."""

Outline = NDArray[np.float64]
"""`(E, 2, 2)`: E directed straight edges, each from (x, y) to (x, y), y downwards; ink is where the winding
number is not 0. Centred on the origin, and its larger side is 1."""

Silhouette = NDArray[np.bool_]
"""`(side, side)`: where the ink is."""


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


def fonts_digest(files: Sequence[Path]) -> str:
    """SHA-256 (hex) over names and bytes of font files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def script_of(character: str) -> str:
    """Unicode's name of the script that a character belongs to: Latin, Greek, …"""
    return str(script_name(script(character)))


def is_base_letter(character: str) -> bool:
    """Whether a character is a letter in its own right.

    Modifier letters, and letters with separable marks, are not: Ǘ is a U with ¨ and ´, and hundreds of such
    classes would be the same few shapes, told apart by a few pixels.
    """
    return unicodedata.category(character) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(character)


def read_outlines(files: Sequence[Path], scripts: Collection[str]) -> dict[str, dict[str, Outline]]:
    """Outlines of every base letter of some scripts: character → face → outline."""
    outlines: dict[str, dict[str, Outline]] = {}
    for path in files:
        font = TTFont(path, lazy=True)
        for code, name in sorted(font.getBestCmap().items()):
            character = chr(code)
            if name == ".notdef" or not is_base_letter(character) or script_of(character) not in scripts:
                continue
            outline = _read_outline(font["glyf"], name)
            if outline is not None:
                outlines.setdefault(character, {})[path.stem] = outline
    return outlines


def _read_outline(glyphs: Any, name: str) -> Outline | None:
    """TrueType: quadratic curves; between two control points in a row an on-curve point lies half-way."""
    points, ends, flags = glyphs[name].getCoordinates(glyphs)
    if len(ends) == 0:
        return None
    point = np.array(list(points), dtype=np.float64) * (1, -1)
    on_curve = (np.frombuffer(bytes(flags), dtype=np.uint8) & 1).astype(bool)
    index = np.arange(len(point))
    last = np.array(ends, dtype=np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    before, after = index - 1, index + 1
    before[first], after[last] = last, first

    straight = on_curve & on_curve[after]
    lines = np.stack([point[straight], point[after[straight]]], axis=1)
    control = index[~on_curve]
    corners = [
        np.where(on_curve[neighbour, None], point[neighbour], (point[neighbour] + point[control]) / 2)
        for neighbour in (before[control], after[control])
    ]
    t = np.linspace(0, 1, CURVE_STEPS + 1)[:, None, None]
    curve = (1 - t) ** 2 * corners[0] + 2 * t * (1 - t) * point[control] + t**2 * corners[1]
    pieces = np.stack([curve[:-1], curve[1:]], axis=2).reshape(-1, 2, 2)
    return _normalise(np.concatenate([lines, pieces]))


def _normalise(outline: Outline) -> Outline:
    low, high = outline.min(axis=(0, 1)), outline.max(axis=(0, 1))
    return (outline - (low + high) / 2) / (high - low).max()


def fill(outline: NDArray[np.float64], size: int, samples: int = 4) -> NDArray[np.float64]:
    """Coverage `(size, size)` in 0 … 1 of an outline in pixels, by counting `samples`² points a pixel.

    In integers after one rounding, so that every machine fills the same points.
    """
    side = size * samples
    # A point of the sampling grid lies at unit · (k + 1/2).
    unit = 256
    edges = np.rint(outline * (samples * unit)).astype(np.int64)
    (x0, y0), (x1, y1) = edges[:, 0].T, edges[:, 1].T
    first = _first_sample(np.minimum(y0, y1), unit, side)
    count = _first_sample(np.maximum(y0, y1), unit, side) - first
    edge = np.repeat(np.arange(len(edges)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    y = row * unit + unit // 2
    x = x0[edge] + (y - y0[edge]) * (x1[edge] - x0[edge]) // (y1[edge] - y0[edge])
    cell = row * (side + 1) + _first_sample(x, unit, side)
    direction = np.sign(y1 - y0)[edge]
    crossings = np.bincount(cell, weights=direction, minlength=side * (side + 1)).reshape(side, side + 1)
    inside = np.cumsum(crossings, axis=1)[:, :side] != 0
    # As a product with blocks of ones: several times faster than a mean over two axes, and as exact.
    blocks = np.repeat(np.eye(size, dtype=np.float32), samples, axis=0)
    return (blocks.T @ inside.astype(np.float32) @ blocks).astype(np.float64) / samples**2


def _first_sample(position: NDArray[np.int64], unit: int, side: int) -> NDArray[np.int64]:
    """Index of the first grid point at or after a position."""
    return np.clip(-((unit // 2 - position) // unit), 0, side)


def silhouette(outline: Outline) -> Silhouette:
    """The inked area at the size, and with the margin, with which shapes are compared."""
    size = COMPARISON_SIZE + 2 * (COMPARISON_TOLERANCE + 1)
    return fill(outline * COMPARISON_SIZE + size / 2, size, samples=2) >= 0.5


def look_alikes(silhouettes: Mapping[str, Mapping[str, Silhouette]]) -> list[list[str]]:
    """Group characters that look the same, whatever their size: A with Greek Α and Cyrillic А, C with c.

    Two characters are alike if their shapes are so in at least half of the faces that have both; whatever is
    alike to one member of a group belongs to it. Groups and their members are in code point order.

    Args:
        silhouettes: character → face → silhouette.
    """
    characters = sorted(silhouettes)
    position = {character: index for index, character in enumerate(characters)}
    alike = np.zeros((len(characters),) * 2, dtype=np.int64)
    shared = np.zeros_like(alike)
    for face in sorted({face for faces in silhouettes.values() for face in faces}):
        present = [character for character in characters if face in silhouettes[character]]
        rows = np.ix_(*[[position[character] for character in present]] * 2)
        alike[rows] += _shapes_alike(np.stack([silhouettes[character][face] for character in present]))
        shared[rows] += 1
    _, groups = connected_components((2 * alike >= shared) & (shared > 0), directed=False)
    members: dict[int, list[str]] = {}
    for character, group in zip(characters, groups.tolist(), strict=True):
        members.setdefault(group, []).append(character)
    return list(members.values())


def _shapes_alike(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`(N, H, W)` to `(N, N)`: whether the Hausdorff distance of the inked areas is within the tolerance.

    One matrix product counts, for all pairs, the ink of one that lies too far from the other's.
    """
    reach = np.arange(-COMPARISON_TOLERANCE, COMPARISON_TOLERANCE + 1)
    near = binary_dilation(ink, (reach**2 + reach[:, None] ** 2 <= COMPARISON_TOLERANCE**2)[None])
    flat, far = ink.reshape(len(ink), -1), ~near.reshape(len(ink), -1)
    outside = flat.astype(np.float32) @ far.astype(np.float32).T
    return (outside == 0) & (outside.T == 0)
