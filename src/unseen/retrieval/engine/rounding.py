"""Vectors rounded to few bits, how far that can move a product, and which rounding pays on this machine.

With q̂, ĝ the rounded vectors: `|q·g - q̂·ĝ| = |(q-q̂)·ĝ + q·(g-ĝ)| <= ‖q-q̂‖‖ĝ‖ + ‖q‖‖g-ĝ‖`
(Cauchy–Schwarz).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor

from unseen.retrieval.engine.vectors import Vectors
from unseen.retrieval.engine.workers import share_out

Precision = Literal["float32", "bfloat16", "int8"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
PRODUCT_DTYPES: dict[Precision, torch.dtype] = DTYPES | {"int8": torch.int32}
# Relative rounding of a product as it is written (bfloat16 keeps 8 bits) and of each of its d additions, with
# a factor of two to spare. Integers add exactly; they become float32 later.
WRITTEN: dict[Precision, float] = {"float32": 2.0**-22, "bfloat16": 2.0**-7, "int8": 2.0**-22}
ADDED: dict[Precision, float] = {"float32": 2.0**-23, "bfloat16": 2.0**-23, "int8": 0.0}
LARGE = 1.4  # times longer takes a product of matrices that leave the cache


@dataclass(frozen=True)
class Rounded:
    """`N` scaled vectors in low precision, in panels of `side` rows, the last one padded with zero rows.

    Args:
        precision: of `values`.
        order: `(N,)` positions of the vectors, in the order of the rows.
        values: `(P, d)`, P a multiple of `side`; times their panel's unit they are close to the scaled
            vectors.
        unit: `(P / side,)` float64, the step of one integer; 1 for floats.
        coarseness: `(P / side,)` float64, the largest residual of each panel.
        norm: `(N,)` float64, of the scaled vectors, not rounded.
        residual: `(N,)` float64, ‖scaled - rounded‖.
        half: `(N,)` float32, half the squared norm for Euclidean, else 0: `score(q, g) = q·g - half(g)`.
    """

    precision: Precision
    order: Tensor
    values: Tensor
    unit: Tensor
    coarseness: Tensor
    norm: Tensor
    residual: Tensor
    half: Tensor

    @cached_property
    def largest(self) -> Tensor:
        """Of the norms; asked for by each panel, like the next."""
        return self.norm.max()

    @cached_property
    def halved(self) -> bool:
        return bool(self.half.any())

    def panel(self, index: int) -> Tensor:
        """`(side, d)`"""
        side = len(self.values) // len(self.unit)
        return self.values[index * side : (index + 1) * side]


def round_to(vectors: Vectors, order: Tensor, side: int, precision: Precision) -> Rounded:
    """Vectors `order` (`(N,)` positions) in `precision`, in that order."""
    panels, width = -(-len(order) // side), vectors.raw.shape[1]
    values = torch.zeros((panels * side, width), dtype=DTYPES[precision])
    units, norms, residuals = [], [], []
    for start in range(0, len(order), side):
        chosen = order[start : start + side]
        scaled = vectors.raw[chosen].double() * vectors.factor[chosen, None]
        unit = max(float(scaled.abs().max()) / 127, 2.0**-140) if precision == "int8" else 1.0
        steps = (scaled / unit).round() if precision == "int8" else scaled
        block = steps.to(DTYPES[precision])
        values[start : start + len(chosen)] = block
        units.append(unit)
        norms.append(scaled.norm(dim=1))
        residuals.append((scaled - block.double() * unit).norm(dim=1))
    norm = torch.cat(norms)
    half = (norm.square() / 2 if vectors.similarity == "euclidean" else torch.zeros_like(norm)).float()
    return Rounded(
        precision=precision,
        order=order,
        values=values,
        unit=torch.tensor(units, dtype=torch.float64),
        coarseness=torch.stack([residual.max() for residual in residuals]),
        norm=norm,
        residual=torch.cat(residuals),
        half=half,
    )


def error_terms(queries: Rounded, rows: slice, gallery: Rounded) -> tuple[Tensor, Tensor]:
    """How far a score may lie from the true one before it is written, as `base + slope c`.

    c is the largest residual among the gallery vectors concerned; `base` and `slope` are `(n,)` float64 for
    query rows `rows`. Rounding of the operands; of the `d` additions (Higham 2002, section 3.1: `d u ‖q̂‖‖ĝ‖`
    for any order); of `half` and of a written product, for Euclidean; and of the final similarity to float32.
    """
    norm, residual, largest = queries.norm[rows], queries.residual[rows], gallery.largest
    width = queries.values.shape[1]
    relative = (width + 4) * ADDED[queries.precision]
    if gallery.halved:
        relative += WRITTEN[queries.precision]
    slope = (norm + residual) * (1 + relative)
    final = (norm + largest).square() * 2.0**-21 + width * 2.0**-120
    return residual * largest + (norm + residual) * largest * relative + final, slope


def multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """`left @ right.T` into `out`: `(m, d)`, `(n, d)` → `(m, n)`; int8 gives exact int32 sums."""
    if left.dtype == torch.int8 and left.shape[1] == 1:  # torch._int_mm writes sums of nothing here
        return torch.mul(left.int(), right.int().T, out=out)
    if left.dtype == torch.int8:
        return torch._int_mm(left, right.T, out=out)
    return torch.mm(left, right.T, out=out)


@cache
def seconds_per_product(dtype: torch.dtype) -> float:
    """Measured once per process: seconds for one multiplication and addition of large matrices, on all
    threads; infinity if unusable here."""
    seconds: list[float] = []
    share_out(lambda kind: seconds.append(_seconds_of_a_thread(kind)), [dtype])
    return LARGE * seconds[0] / torch.get_num_threads()


def _seconds_of_a_thread(dtype: torch.dtype) -> float:
    size, width = 256, 256
    try:
        values = torch.ones((size, width)).to(dtype)
        if dtype == torch.int8:
            values[::2], values[1::2] = 127, -127
        out = torch.empty((size, size), dtype=torch.int32 if dtype == torch.int8 else dtype)
        multiply(values, values, out)
    except (RuntimeError, AttributeError):
        return float("inf")
    # Integer units that saturate between products would make silent errors: here they are found out.
    extreme = 127 * 127 * width
    if dtype == torch.int8 and (int(out[0, 0]), int(out[0, 1])) != (extreme, -extreme):
        return float("inf")
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        multiply(values, values, out)
        times.append(time.perf_counter() - begin)
    return min(times) / (size * size * width)
