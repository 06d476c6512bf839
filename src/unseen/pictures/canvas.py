"""What the pictures share: figures without global state, colours for colour-blind eyes too, text, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unseen.files import replacing

Image = NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""

# Okabe & Ito 2008.
BLUE, ORANGE, GREEN, PINK, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
GREY, PALE = "#6E6E6E", "#DDDDDD"
DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, size in inches."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write(place: Axes | Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text that is shown as it is: a class name may hold a dollar sign without becoming a formula."""
    style = {"color": BLACK, "fontsize": 8, "parse_math": False, **style}
    place.text(x, y, text, **style)


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the middle left out: names differ at their start or at their end."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def plain_axes(axes: Axes) -> None:
    """Two thin axis lines and a faint grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG atomically; returns its path."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
