"""The inner loops of a sweep, compiled: which pairs may be near, and how near they truly are.

Products are read as integers, of which one instruction compares many. Products of floats are their bits: of
two positive ones the greater has the greater bits, of two negative ones the smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit

from unseen.retrieval.engine.keys import LAST
from unseen.retrieval.engine.tiling import STRIPE

HIDDEN = -(2.0**30)  # products of pairs that must not be found are written below this
SLACK = 2.0**-22  # more than two roundings to float32
COSINE, DOT, EUCLIDEAN = 0, 1, 2

Array = np.ndarray[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


class Pairs(NamedTuple):
    """Where exact similarities come from.

    Args:
        similarity: `COSINE`, `DOT` or `EUCLIDEAN`.
        queries: `(N, d)` float32, as given.
        query_factor: `(N,)` float64, what makes them comparable.
        gallery: `(G, d)` float32.
        gallery_factor: `(G,)` float64.
        order: `(G,)` int64, positions in the gallery in the order of the sweep.
    """

    similarity: int
    queries: Array
    query_factor: Array
    gallery: Array
    gallery_factor: Array
    order: Array


class Candidates(NamedTuple):
    """What may be among the nearest of `m` queries, as far as they have looked.

    Args:
        depth: `(m,)` int64, how many neighbours each wants; k of a query, below.
        rows: `(m,)` int64, positions of the queries.
        norm: `(m,)` float64, of the scaled queries.
        scores: `(m, capacity)` float32 of the candidates, as products give them.
        bits: the same memory as int32.
        columns: `(m, capacity)` int32, where the candidates stand in the order of the sweep.
        used: `(m,)` int64, how many there are.
        due: `(m,)` int64, with how many the threshold is raised.
        threshold: `(m,)` float64, a lower bound on the true score of the k-th nearest; infinite for a query
            that was given up, because more candidates lie within the error bound than it can hold.
        base: `(m,)` float64.
        slope: `(m,)` float64; before it is written, the score of an item of a gallery panel of coarseness c
            lies within `base + slope c` of the true one.
        error: `(m,)` float64, that of the coarsest panel.
        written: relative error of a product as it is written.
    """

    depth: Array
    rows: Array
    norm: Array
    scores: Array
    bits: Array
    columns: Array
    used: Array
    due: Array
    threshold: Array
    base: Array
    slope: Array
    error: Array
    written: float


def rows_of(candidates: Candidates, rows: slice) -> Candidates:
    """Those of some queries; views of the same memory."""
    parts: dict[str, Any] = {
        name: value[rows] for name, value in candidates._asdict().items() if isinstance(value, np.ndarray)
    }
    return candidates._replace(**parts)


class Tile(NamedTuple):
    """How to read products with a gallery panel.

    Args:
        first: place of its first item in the order of the sweep.
        half: `(count,)` float32, subtracted from a product's worth to give a score.
        least_half: the least of them.
        coarseness: its largest residual.
        worth: of one unit of a product.
        integral: products are sums of integers, not bits of floats.
        shift: bits that a product lacks of 32.
    """

    first: int
    half: Array
    least_half: float
    coarseness: float
    worth: float
    integral: bool
    shift: int


def _compiled(**options: Any) -> Callable[[Function], Function]:
    """Compiled at the first call, without Python's lock; kept on disk where there is a place for it."""

    def decorate(function: Function) -> Function:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache can be written
            return njit(nogil=True, **options)(function)

    return decorate


@_compiled(fastmath={"reassoc", "contract"})
def _product(left: Array, right: Array) -> float:
    total = 0.0
    for index in range(len(left)):
        total += np.float64(left[index]) * np.float64(right[index])
    return total


@_compiled(fastmath={"reassoc", "contract"})
def _squared_distance(left: Array, right: Array) -> float:
    total = 0.0
    for index in range(len(left)):
        difference = np.float64(left[index]) - np.float64(right[index])
        total += difference * difference
    return total


@_compiled()
def _similarity(pairs: Pairs, query: int, item: int) -> float:
    left, right = pairs.queries[query], pairs.gallery[item]
    if pairs.similarity == EUCLIDEAN:
        return -np.sqrt(_squared_distance(left, right))
    product = _product(left, right)
    if pairs.similarity == DOT:
        return product
    return product * pairs.query_factor[query] * pairs.gallery_factor[item]


@_compiled()
def _score(pairs: Pairs, candidates: Candidates, row: int, similarity: float) -> float:
    """What a product of scaled vectors, less half the item's squared norm for Euclidean, would be."""
    factor = pairs.query_factor[candidates.rows[row]]
    if pairs.similarity == EUCLIDEAN:
        return (candidates.norm[row] ** 2 - (similarity * factor) ** 2) / 2
    return similarity * factor * factor if pairs.similarity == DOT else similarity


@_compiled()
def _below(value: float, share: float) -> float:
    return value - abs(value) * share


@_compiled()
def _limit(candidates: Candidates, row: int, tile: Tile) -> int:
    """The least product, as integer, that may belong to one of the k nearest; never too high."""
    threshold = candidates.threshold[row]
    if threshold == np.inf:
        return (2**31 - 1) >> tile.shift  # no product is as great
    limit = HIDDEN
    if threshold > -np.inf:
        close = candidates.base[row] + candidates.slope[row] * tile.coarseness
        limit = _below(threshold - close + tile.least_half, candidates.written) / tile.worth
        limit = min(max(_below(limit, SLACK), HIDDEN), 2.0**31 - 1)
    if tile.integral:
        return int(np.floor(limit))
    bits: Any = np.int64(np.float32(limit).view(np.int32))
    if limit > 0:
        return (bits - (bits > 0)) >> tile.shift
    return ((bits & 0x7FFFFFFF) >> tile.shift) + 1 - (1 << (31 - tile.shift))


@_compiled()
def _coarse_limit(limit: int, tile: Tile) -> int:
    """What every product that reaches `limit` is not below, compared as integers."""
    return limit if tile.integral or limit >= 0 else -(1 << (31 - tile.shift))


@_compiled()
def _reaches(product: int, limit: int, tile: Tile) -> bool:
    if tile.integral or limit >= 0:
        return product >= limit
    return product >= 0 or product <= limit


@_compiled()
def _ordered(bits: int) -> int:
    """Bits of a float as an integer of the same order; undoes itself."""
    return bits ^ 0x7FFFFFFF if bits < 0 else bits


@_compiled()
def _kth_score(candidates: Candidates, row: int) -> float:
    """The k-th greatest written score, by bisection between the least and the greatest of all floats."""
    bits, depth = candidates.bits[row, : candidates.used[row]], candidates.depth[row]
    low, high = -(2**31), 2**31 - 1  # at least k reach `low`
    while low < high:
        middle, reaching = (low + high + 1) >> 1, 0
        for slot in range(len(bits)):
            reaching += _ordered(bits[slot]) >= middle
        if reaching < depth:
            high = middle - 1
            continue
        low = middle
        if reaching == depth:
            break
    least = 2**31 - 1
    for slot in range(len(bits)):
        if _ordered(bits[slot]) >= low:
            least = min(least, _ordered(bits[slot]))
    return np.float64(np.int32(_ordered(least)).view(np.float32))


@_compiled()
def _exact_kth(candidates: Candidates, row: int, pairs: Pairs) -> float:
    """True score that the k candidates of greatest written score all reach."""
    kth, least = _kth_score(candidates, row), np.inf
    for slot in range(candidates.used[row]):
        if candidates.scores[row, slot] >= kth:
            item = pairs.order[candidates.columns[row, slot]]
            least = min(least, _score(pairs, candidates, row, _similarity(pairs, candidates.rows[row], item)))
    return least


@_compiled()
def _least_score(candidates: Candidates, row: int) -> float:
    """The least written score that a candidate may have and be among the k nearest."""
    return _below(candidates.threshold[row] - candidates.error[row], candidates.written + SLACK)


@_compiled()
def _raise_threshold(candidates: Candidates, row: int, reached: float) -> None:
    """Candidates that cannot be among the k nearest are dropped."""
    candidates.threshold[row] = max(candidates.threshold[row], reached)
    limit = _least_score(candidates, row)
    scores, columns, left = candidates.scores[row], candidates.columns[row], 0
    for slot in range(candidates.used[row]):
        if scores[slot] >= limit:
            scores[left], columns[left] = scores[slot], columns[slot]
            left += 1
    candidates.used[row] = left


@_compiled()
def _tighten(candidates: Candidates, row: int, pairs: Pairs) -> None:
    """Raise the threshold to what the k best so far reach; give a query up that has no room then."""
    capacity, depth = candidates.scores.shape[1], candidates.depth[row]
    if candidates.used[row] >= depth:
        _raise_threshold(
            candidates, row, _below(_kth_score(candidates, row), candidates.written) - candidates.error[row]
        )
    # True scores need no error subtracted; where many are left, they are worth their price.
    if candidates.used[row] > depth + (capacity - depth) // 3:
        _raise_threshold(candidates, row, _exact_kth(candidates, row, pairs))
    if candidates.used[row] == capacity:
        candidates.threshold[row], candidates.used[row] = np.inf, 0
    used = candidates.used[row]
    candidates.due[row] = min(used + max(depth, 16, used // 2), capacity)


@_compiled()
def _add(candidates: Candidates, row: int, product: int, place: int, tile: Tile) -> None:
    used = candidates.used[row]
    if tile.integral:
        candidates.scores[row, used] = product * tile.worth
    else:
        candidates.bits[row, used] = np.int32(product) << tile.shift
    candidates.scores[row, used] -= tile.half[place]
    candidates.columns[row, used] = tile.first + place
    candidates.used[row] = used + 1


@_compiled()
def _any_reaches(products: Array, limits: Array) -> bool:
    """Both `(STRIPE,)` of one type; a loop as plain as this becomes vector instructions."""
    near = False
    for place in range(STRIPE):
        near |= products[place] >= limits[place]
    return near


@_compiled()
def scan_rows(products: Array, candidates: Candidates, tile: Tile, pairs: Pairs) -> None:
    """Take what may be near.

    Args:
        products: `(side, side)` int16 or int32, a row for each query and a column for each item.
        candidates: by the queries.
        tile: of the items.
        pairs: all of them.
    """
    coarse = np.empty(STRIPE, dtype=products.dtype)
    for row in range(len(candidates.used)):
        limit = _limit(candidates, row, tile)
        coarse[:] = _coarse_limit(limit, tile)
        line = products[row]
        for start in range(0, len(tile.half), STRIPE):
            if not _any_reaches(line[start : start + STRIPE], coarse):
                continue
            for place in range(start, min(start + STRIPE, len(tile.half))):
                if not _reaches(line[place], limit, tile):
                    continue
                _add(candidates, row, line[place], place, tile)
                if candidates.used[row] == candidates.due[row]:
                    _tighten(candidates, row, pairs)
                    limit = _limit(candidates, row, tile)
                    coarse[:] = _coarse_limit(limit, tile)


@_compiled()
def scan_columns(products: Array, candidates: Candidates, tile: Tile, pairs: Pairs) -> None:
    """As `scan_rows`, with a column for each query and a row for each item."""
    count = len(candidates.used)
    limits = np.empty(count, dtype=np.int64)
    coarse = np.full(products.shape[1], (2**31 - 1) >> tile.shift, dtype=products.dtype)
    for row in range(count):
        limits[row] = _limit(candidates, row, tile)
        coarse[row] = _coarse_limit(limits[row], tile)
    for place in range(len(tile.half)):
        line = products[place]
        for start in range(0, count, STRIPE):
            if not _any_reaches(line[start : start + STRIPE], coarse[start : start + STRIPE]):
                continue
            for row in range(start, min(start + STRIPE, count)):
                if line[row] < coarse[row] or not _reaches(line[row], limits[row], tile):
                    continue
                _add(candidates, row, line[row], place, tile)
                if candidates.used[row] == candidates.due[row]:
                    _tighten(candidates, row, pairs)
                    limits[row] = _limit(candidates, row, tile)
                    coarse[row] = _coarse_limit(limits[row], tile)


@_compiled()
def _decide_near(
    candidates: Candidates, row: int, pairs: Pairs, similarities: Array, positions: Array
) -> None:
    """As `decide`, for one query: the k of greatest written score say how near the others must be."""
    kth, reached = _kth_score(candidates, row), np.inf
    scores, columns = candidates.scores[row], candidates.columns[row]
    for slot in range(candidates.used[row]):
        if scores[slot] >= kth:
            item = pairs.order[columns[slot]]
            similarity = _similarity(pairs, candidates.rows[row], item)
            positions[slot], similarities[slot] = item, similarity
            reached = min(reached, _score(pairs, candidates, row, similarity))
    candidates.threshold[row] = max(candidates.threshold[row], reached)
    limit, left = _least_score(candidates, row), 0
    for slot in range(candidates.used[row]):
        if scores[slot] < limit:
            continue
        if scores[slot] >= kth:
            positions[left], similarities[left] = positions[slot], similarities[slot]
        else:
            positions[left] = pairs.order[columns[slot]]
            similarities[left] = _similarity(pairs, candidates.rows[row], positions[left])
        left += 1
    positions[left : candidates.used[row]], similarities[left : candidates.used[row]] = LAST, -np.inf
    candidates.used[row] = left


@_compiled()
def decide(candidates: Candidates, pairs: Pairs, similarities: Array, positions: Array) -> None:
    """True similarities of all candidates that may be among the k nearest.

    Args:
        candidates: by the queries.
        pairs: all of them.
        similarities: `(m, capacity)` float32 of -inf, to be filled from the left.
        positions: `(m, capacity)` int64 of `LAST`, likewise: in the gallery.
    """
    for row in range(len(candidates.used)):
        if candidates.used[row] > candidates.depth[row]:
            _decide_near(candidates, row, pairs, similarities[row], positions[row])
            continue
        for slot in range(candidates.used[row]):
            positions[row, slot] = pairs.order[candidates.columns[row, slot]]
            similarities[row, slot] = _similarity(pairs, candidates.rows[row], positions[row, slot])
