"""Where each tapped layer looks, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Pillow

from unseen.pictures.canvas import GREY, Image, new_figure, save, shortened, write

CELL, GAP, HEADER, FOOTER, NAME = 1.75, 0.1, 0.95, 0.55, 0.22  # inches


def attention_overlays(
    path: Path,
    images: Sequence[Image],
    names: Sequence[str],
    attention: Sequence[NDArray[np.floating]],
    tap_names: Sequence[str],
    title: str = "Attention of each tapped layer",
) -> Path:
    """A row for each image, a column for each tap.

    Colours are relative to the strongest position of each map; how strong that is stands under it, as a
    multiple of even attention: 1× means that the map is flat and its pattern means nothing.

    Args:
        path: PNG to write.
        images: `R` images `(H, W, 3)` uint8.
        names: `R` class names.
        attention: for each of `L` taps `(R, H_l, W_l)`, non-negative.
        tap_names: `L` names.
        title: heading.

    Raises:
        ValueError: there is no image or no tap, or the lengths disagree.
    """
    _check(images, names, attention, tap_names)
    rows, columns = len(images), len(attention) + 1
    width = columns * (CELL + GAP) + GAP
    height = rows * (CELL + NAME + GAP) + HEADER + FOOTER
    figure = new_figure(width, height)
    write(figure, GAP / width, 1 - 0.3 / height, title, fontsize=13, weight="bold", va="center")
    for column, heading in enumerate(_headings(attention, tap_names)):
        x = (GAP + column * (CELL + GAP) + CELL / 2) / width
        write(figure, x, 1 - 0.74 / height, heading, fontsize=9, ha="center", va="center")
    for row, image in enumerate(images):
        bottom = height - HEADER - (row + 1) * (CELL + NAME + GAP) + NAME + GAP
        panels = [np.asarray(image), *(overlay(image, maps[row]) for maps in attention)]
        notes = [shortened(names[row], 26), *(f"peak {_peak(maps[row]):.1f}×" for maps in attention)]
        for column, (panel, note) in enumerate(zip(panels, notes, strict=True)):
            left = GAP + column * (CELL + GAP)
            axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
            axes.imshow(panel, aspect="auto", interpolation="lanczos")
            axes.set_axis_off()
            color = GREY if column else "#222222"
            write(axes, 0.5, -0.025, note, transform=axes.transAxes, ha="center", va="top", color=color)
    _scale(figure, width, height)
    return save(figure, path)


def overlay(image: Image, weights: NDArray[np.floating]) -> Image:
    """The image in grey under its attention in colour.

    Args:
        image: `(H, W, 3)` uint8.
        weights: `(h, w)`, non-negative.

    Returns:
        `(H, W, 3)` uint8.
    """
    image, weights = np.asarray(image), np.asarray(weights, dtype=np.float32)
    height, width = image.shape[:2]
    relative = weights / max(float(weights.max()), 1e-12)
    smooth = Pillow.fromarray(relative).resize((width, height), Pillow.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    color = colormaps["inferno"](strength)[..., :3] * 255
    grey = np.repeat(np.asarray(Pillow.fromarray(image).convert("L"))[..., None], 3, axis=2)
    opacity = (0.35 + 0.4 * strength)[..., None]
    return np.round(color * opacity + grey * (1 - opacity)).astype(np.uint8)


def _peak(weights: NDArray[np.floating]) -> float:
    """The largest weight as a multiple of the mean."""
    return float(weights.max() / max(float(weights.mean()), 1e-12))


def _headings(attention: Sequence[NDArray[np.floating]], tap_names: Sequence[str]) -> list[str]:
    sizes = [f"{maps.shape[1]}×{maps.shape[2]}" for maps in attention]
    return ["image", *(f"{shortened(name, 24)}\n{size}" for name, size in zip(tap_names, sizes, strict=True))]


def _check(
    images: Sequence[Image],
    names: Sequence[str],
    attention: Sequence[NDArray[np.floating]],
    tap_names: Sequence[str],
) -> None:
    if len(images) == 0 or len(attention) == 0:
        raise ValueError(f"{len(images)} images and {len(attention)} taps: there is nothing to draw.")
    lengths = [len(names), *(len(maps) for maps in attention)]
    if set(lengths) != {len(images)} or len(tap_names) != len(attention):
        raise ValueError(
            f"{len(images)} images with names and maps for {lengths}, {len(attention)} taps with "
            f"{len(tap_names)} names: they must agree."
        )


def _scale(figure: Figure, width: float, height: float) -> None:
    axes = figure.add_axes((GAP / width, 0.3 / height, 1.6 / width, 0.1 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap="inferno")
    axes.set_axis_off()
    text = "0 … strongest position\npeak: strongest ÷ even attention"
    write(figure, (GAP + 1.7) / width, 0.35 / height, text, va="center", color=GREY)
