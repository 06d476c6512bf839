"""The same image twice.

Exact duplicates are images whose decoded pixels are equal, however they are stored. Near duplicates (saved
again, resized, slightly cropped) have perceptual hashes (pHash: 64 signs of low frequencies) that differ in a
few bits, and small copies that differ by a small share of their contrast: hashes alone also pair different
drawings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

BLOCK = 2048
"""Hashes compared at a time: a block of `BLOCK × BLOCK` distances takes 16 MB, its pairs up to 64 MB."""

Rows = tuple[int, ...]


def exact_duplicates(digests: Sequence[bytes]) -> list[Rows]:
    """Groups of positions with equal digests."""
    positions: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        positions.setdefault(digest, []).append(position)
    return [tuple(group) for group in positions.values() if len(group) > 1]


def near_duplicates(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], distance: int, difference: float
) -> list[Rows]:
    """Groups of positions that are linked by near-duplicate pairs.

    Small copies a, b differ by ‖a − b‖ / min(‖a − mean(a)‖, ‖b − mean(b)‖). Photographs that were saved
    again come to about 0.02, slightly cropped ones to 0.1, two drawings of one character to more.

    Args:
        hashes: `(N,)` 64-bit perceptual hashes.
        thumbnails: `(N, h, w, 3)` small copies.
        distance: most bits in which the hashes of a pair differ.
        difference: most by which the copies of a pair differ.
    """
    if not len(hashes):
        return []
    # White pages are one page: each appearance is compared once, or n copies would make n² pairs.
    flat = thumbnails.reshape(len(hashes), -1)
    appearances = np.concatenate([hashes[:, None].view(np.uint8), flat], axis=1)
    _, kept, which = np.unique(
        appearances.view(f"V{appearances.shape[1]}"), return_index=True, return_inverse=True
    )
    copies = flat[kept].astype(np.float32)
    contrasts = np.linalg.norm(copies - copies.mean(axis=1, keepdims=True), axis=1)
    component = np.arange(len(kept))
    for first, second in _close_pairs(hashes[kept], distance):
        apart = component[first] != component[second]
        first, second = first[apart], second[apart]
        weaker = np.minimum(contrasts[first], contrasts[second])
        close = np.linalg.norm(copies[first] - copies[second], axis=1) <= difference * weaker
        component = _joined(component, first[close], second[close])
    return _groups_of(component[which.ravel()])


def _joined(
    component: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The component of each position after pairs were linked, some at a time, as all may be too many."""
    if not len(first):
        return component
    size = len(component)
    links = coo_matrix((np.ones(len(first)), (component[first], component[second])), shape=(size, size))
    _, merged = connected_components(links, directed=False)
    return np.asarray(merged[component], dtype=np.int64)


def _groups_of(component: NDArray[np.int64]) -> list[Rows]:
    """Positions that share a component with others, by the first of each."""
    _, place, count = np.unique(component, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for position in np.flatnonzero(count[place] > 1):
        groups.setdefault(int(component[position]), []).append(int(position))
    return [tuple(group) for group in groups.values()]


def _close_pairs(
    hashes: NDArray[np.uint64], distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs `first < second` of hashes at most `distance` bits apart, some thousands at a time.

    With bits as ±1, the inner product of two hashes is 64 − 2 · (bits that differ): all distances of a block
    are one matrix product.
    """
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    for top in range(0, len(bits), BLOCK):
        for left in range(top, len(bits), BLOCK):
            agreement = bits[top : top + BLOCK] @ bits[left : left + BLOCK].T
            first, second = np.nonzero(agreement >= 64 - 2 * distance)
            first, second = first + top, second + left
            ordered = first < second
            first, second = first[ordered], second[ordered]
            for start in range(0, len(first), BLOCK):
                yield first[start : start + BLOCK], second[start : start + BLOCK]
