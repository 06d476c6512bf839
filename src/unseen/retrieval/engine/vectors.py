"""Vectors as given, made comparable: checked once, scaled once, compared in float64 where it decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Similarity = Literal["cosine", "euclidean", "dot"]
LARGEST_NORM = 1e18  # squares of longer vectors leave float32
NAMED = 8  # how many culprits an error lists


@dataclass(frozen=True)
class Vectors:
    """`N` vectors of `d` numbers under one similarity.

    Args:
        raw: `(N, d)` float32, as given: what exact similarities are computed from.
        factor: `(N,)` float64; `raw * factor` has norm 1 (cosine; 0 for the zero vector) or at most 1 (else).
        similarity: how two vectors compare.
    """

    raw: Tensor
    factor: Tensor
    similarity: Similarity

    def __len__(self) -> int:
        return len(self.raw)

    def only(self, positions: Tensor) -> Vectors:
        return replace(self, raw=self.raw[positions], factor=self.factor[positions])

    def scaled(self, start: int, stop: int) -> Tensor:
        """Rows `start … stop` times their factors, `(stop - start, d)` float64."""
        return self.raw[start:stop].double() * self.factor[start:stop, None]


class NotFiniteError(ValueError):
    """Embeddings are NaN or infinite."""


def has_float64(device: torch.device) -> bool:
    """Apple's GPU (MPS) has none; exactness is decided in it."""
    return device.type != "mps"


def as_tensor(values: Any) -> Tensor:
    """What NumPy or torch hold, without a graph; a view backwards too, which torch does not know."""
    return torch.as_tensor(
        np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
    ).detach()


def as_vectors(values: Any, name: str, ids: Tensor | None = None) -> Tensor:
    """`(N, d)` float32 on the device of `values` (NumPy or torch), the CPU where that has no float64; float64
    is rounded. All else follows the vectors.

    Raises:
        ValueError: not two-dimensional, or empty.
        NotFiniteError: not finite; the message names the ids.
    """
    tensor = as_tensor(values)
    if not has_float64(tensor.device):
        tensor = tensor.cpu()
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"{name} must have shape (N, d) with N, d >= 1; got {tuple(tensor.shape)}.")
    tensor = tensor.to(torch.float32).contiguous()
    # The sum over a row is finite unless an element is not (or finite elements overflow: looked at closely).
    suspects = (~torch.isfinite(tensor.sum(dim=1))).nonzero().squeeze(1)
    culprits = suspects[~torch.isfinite(tensor[suspects]).all(dim=1)]
    if len(culprits):
        if ids is not None and len(ids) == len(tensor):
            culprits = ids.to(culprits.device)[culprits]
        named = culprits[:NAMED].tolist()
        more = ", …" if len(culprits) > NAMED else ""
        raise NotFiniteError(
            f"{name}: {len(culprits)} of {len(tensor)} rows hold NaN or infinite values (ids {named}{more}). "
            "Look at these images, or at a training that diverged."
        )
    return tensor


def as_labels(values: Any, count: int, name: str) -> Tensor:
    """`(count,)` int64; integers of any size survive, nothing is cast through floats."""
    given = np.asarray(values) if isinstance(values, list | tuple) else values
    if isinstance(given, np.ndarray) and given.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be integers; got {given.dtype}. Number them: "
            f"numpy.unique({name}, return_inverse=True)[1]; of queries and a gallery, both together."
        )
    tensor = as_tensor(given)
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{name} must be integers; got {tensor.dtype}. Floats merge labels above 2^24.")
    if tensor.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per vector; got {tuple(tensor.shape)}.")
    return tensor.to(torch.int64)


def prepare(raw: Tensor, similarity: Similarity, largest: float | None = None) -> Vectors:
    """Find the factors. `largest`: of the norms of queries and gallery together, for dot and Euclidean."""
    if similarity == "cosine":
        norms = norms_of(raw)
        return Vectors(raw, torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)), similarity)
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {get_args(Similarity)}; got {similarity!r}.")
    largest = float(norms_of(raw).max()) if largest is None else largest
    if largest > LARGEST_NORM:
        raise ValueError(
            f"Embeddings of norm {largest:.1e} overflow float32; keep norms below {LARGEST_NORM:.0e}."
        )
    # A power of two, so that scaling changes no digit.
    power = 2.0 ** -np.ceil(np.log2(largest)) if largest > 0 else 1.0
    factor = torch.full((len(raw),), power, dtype=torch.float64, device=raw.device)
    return Vectors(raw, factor, similarity)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 products are float32 here, whatever the caller allows elsewhere (TF32, bfloat16, autocast)."""
    with torch.autocast(device.type, enabled=False):
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # PyTorch before 2.9
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        # The other way refuses to be asked once a caller has set one of these.
        products: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
        allowed = [product.fp32_precision for product in products]
        for product in products:
            product.fp32_precision = "ieee"
        try:
            yield
        finally:
            for product, precision in zip(products, allowed, strict=True):
                product.fp32_precision = precision


def norms_of(raw: Tensor) -> Tensor:
    """Euclidean norms in float64, `(N,)`."""
    rows = max(1, 2**20 // raw.shape[1])
    return torch.cat([block.double().norm(dim=1) for block in raw.split(rows)])


def exact(queries: Vectors, rows: Tensor, gallery: Vectors, columns: Tensor) -> Tensor:
    """Similarity of query `rows[i]` with gallery items `columns[i, :]`, computed in float64.

    Args:
        rows: `(n,)` positions of queries.
        columns: `(n, c)` positions in the gallery.

    Returns:
        `(n, c)` float64: cosine, dot product, or minus the Euclidean distance.
    """
    query = queries.raw[rows].double()[:, None]
    # index_select gathers twice as fast as indexing; in-place work saves as much again.
    items = (
        gallery.raw.index_select(0, columns.reshape(-1)).double().view(*columns.shape, gallery.raw.shape[1])
    )
    if queries.similarity == "euclidean":
        return -items.sub_(query).norm(dim=2)
    products = items.mul_(query).sum(dim=2)
    if queries.similarity == "dot":
        return products
    return products * queries.factor[rows, None] * gallery.factor[columns]


def exact_block(queries: Vectors, rows: Tensor, gallery: Vectors, start: int, stop: int) -> Tensor:
    """As `exact`, for all pairs of `rows` with the gallery's `start … stop`: `(n, stop - start)` float64."""
    query = queries.raw[rows].double()
    items = gallery.raw[start:stop].double()
    if queries.similarity == "euclidean":
        # Differences, not products: identical vectors are at distance 0 exactly.
        return -torch.cdist(query, items, compute_mode="donot_use_mm_for_euclid_dist")
    products = query @ items.T
    if queries.similarity == "dot":
        return products
    return products * queries.factor[rows, None] * gallery.factor[start:stop]
