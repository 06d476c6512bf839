"""All pairs in low precision, tile by tile, keeping every pair that may be among the k nearest.

Each query holds a threshold: a lower bound on the true score of its k-th nearest. A pair is dropped only
if its rounded product plus the error bound stays below. When queries are the gallery, a tile serves its
rows and its columns, so half of the tiles suffice. The order has nothing to do with classes, so that the
first tiles already give tight thresholds, and maxima of short runs of a tile tell where to look closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.retrieval.exact import exact_keys, score_of
from unseen.retrieval.order import LAST, from_keys
from unseen.retrieval.problem import Problem
from unseen.retrieval.rounding import (
    PRODUCT_DTYPES,
    WRITTEN,
    Precision,
    error,
    like_with_like,
    multiply,
    round_to,
)

TIGHTEN = 2  # thresholds are renewed each time a query has met this many times as much of the gallery
APART = 64  # a cache line or two of products
HIDDEN = -(2.0**30)  # products of pairs that must not be found are written below this


@dataclass(frozen=True)
class Plan:
    """How a sweep is cut.

    Args:
        precision: of the products.
        side: rows and columns of a tile; a multiple of `run`.
        run: elements of a tile under one maximum.
        apart: they lie this far from each other, so that maxima of neighbouring runs are taken at once.
        capacity: candidates that a query may hold.
        symmetric: whether a tile serves its columns too.
    """

    precision: Precision
    side: int
    run: int
    apart: int
    capacity: int
    symmetric: bool


def plan_sweep(problem: Problem, k: int, memory_budget: int, precision: Precision) -> Plan:
    """Cut the sweep so that tile and candidates fit the budget."""
    side = min(2048, max(32, 2 ** int(math.log2(math.sqrt(memory_budget / 64)))))
    run = 16
    while run > 1 and side < 4 * (k + 1) * run:
        run //= 2
    # Without enough runs for first thresholds, the first tile is held whole.
    capacity = max(128, 6 * k) + (side if side < 4 * (k + 1) else 0)
    symmetric = problem.symmetric and len(problem.queries) * capacity * 8 < memory_budget // 2
    return Plan(precision, side, run, min(APART, side // run), capacity, symmetric)


class Sweep:
    """The whole pass: `run` gives the keys `(N, k)` of all queries and, `(N,)` bool, which of them are
    decided."""

    def __init__(self, problem: Problem, k: int, plan: Plan) -> None:
        self.problem, self.k, self.plan = problem, k, plan
        count = len(problem.gallery)
        order = like_with_like(problem.gallery, plan.precision)
        self.gallery = round_to(problem.gallery, order, plan.side, plan.precision)
        self.queries, self.own = self.gallery, None
        if not problem.symmetric:
            everyone = torch.arange(len(problem.queries))
            self.queries = round_to(problem.queries, everyone, plan.side, plan.precision)
            if bool((problem.own >= 0).any()):
                place = torch.empty_like(order)
                place[order] = torch.arange(count)
                self.own = torch.where(problem.own >= 0, place[problem.own.clamp(min=0)], -1)

    def run(self) -> tuple[Tensor, Tensor]:
        side, run, apart, queries = self.plan.side, self.plan.run, self.plan.apart, len(self.problem.queries)
        product = torch.empty((side, side), dtype=PRODUCT_DTYPES[self.plan.precision])
        by_rows, by_columns = product.view(side, -1, run, apart), product.view(-1, run, apart, side)
        keys = torch.empty((queries, self.k), dtype=torch.int64)
        decided = torch.empty(queries, dtype=torch.bool)
        panels = [Panel(self, start) for start in range(0, queries, side)]
        for index, panel in enumerate(panels):
            for other in range(index if self.plan.symmetric else 0, len(self.gallery.unit)):
                self._multiply(index, other, product)
                runs = _maxima(by_rows, 2).view(side, -1)
                panel.meet(runs, lambda row, group, at: by_rows[row, group, :, at], other)
                if self.plan.symmetric and other > index:
                    runs = _maxima(by_columns, 1).view(-1, side).T.contiguous()
                    panels[other].meet(runs, lambda row, group, at: by_columns[group, :, at, row], index)
            keys[panel.rows], decided[panel.rows] = panel.finish()
        return keys, decided

    def _multiply(self, index: int, other: int, product: Tensor) -> None:
        """Products of query panel `index` and gallery panel `other`; padding and a query's own pair
        hidden."""
        side = self.plan.side
        rows, columns = slice(index * side, (index + 1) * side), slice(other * side, (other + 1) * side)
        multiply(self.queries.values[rows], self.gallery.values[columns], product)
        lowest = 2 * HIDDEN
        product[:, max(len(self.gallery.order) - columns.start, 0) :] = lowest
        if self.problem.symmetric and index == other:
            product.fill_diagonal_(lowest)
        if self.own is not None:
            own = self.own[rows] - columns.start
            here = ((own >= 0) & (own < side)).nonzero().squeeze(1)
            product[here, own[here]] = lowest


class Panel:
    """The queries of one panel, `m` of them, and what they have found so far.

    `scores` `(m, capacity)` float32 and `columns` `(m, capacity)` int32 hold the candidates, `used`
    `(m,)` says how many. `threshold` `(m,)` float64 is infinite for a query that was given up: more
    candidates lie within the error bound than it can hold.
    """

    def __init__(self, sweep: Sweep, start: int) -> None:
        self.sweep = sweep
        self.slice = slice(start, min(start + sweep.plan.side, len(sweep.queries.order)))
        self.rows = sweep.queries.order[self.slice]
        self.error = self._error(sweep.gallery.coarseness.max())
        self.used = torch.zeros(len(self.rows), dtype=torch.int64)
        self.threshold = torch.full((len(self.rows),), -torch.inf, dtype=torch.float64)
        self.scores, self.columns = torch.empty(0), torch.empty(0, dtype=torch.int32)
        self.met, self.renewed_at = 0, 0
        # Where the error bound is wide, exact thresholds are worth their price now and then.
        self.coarse = sweep.plan.precision == "int8"

    def _error(self, coarseness: Tensor) -> Tensor:
        return error(self.sweep.queries, self.slice, self.sweep.gallery, coarseness)

    def meet(self, runs: Tensor, expand: Callable[[Tensor, Tensor, Tensor], Tensor], other: int) -> None:
        """Take what may be among the k nearest from the products with gallery panel `other`.

        Args:
            runs: `(side, side / run)` maxima of runs; rows are this panel's queries.
            expand: `(h,)` rows, groups of runs and runs in their group → `(h, run)` products.
        """
        plan, gallery = self.sweep.plan, self.sweep.gallery
        runs = runs[: len(self.rows)]
        square = float(self.sweep.queries.unit[self.slice.start // plan.side] * gallery.unit[other])
        members = slice(other * plan.side, (other + 1) * plan.side)
        halves = gallery.half[members].double()
        close = self._error(gallery.coarseness[other])
        if self.met == 0:
            self._open(runs, square, close + halves.max())
        limit = _written_below(self.threshold - close + halves.min(), plan.precision) / square
        limit = _float_below(limit).clamp(min=HIDDEN)
        # Maxima that are not positive may be wrong (see _maxima): below 0, every run is looked into.
        row, part = (runs >= torch.where(limit > 0, limit, -torch.inf)[:, None]).nonzero(as_tuple=True)
        group, at = part // plan.apart, part % plan.apart
        products = expand(row, group, at)
        hit, place = (products >= limit[row, None]).nonzero(as_tuple=True)
        column = (group[hit] * plan.run + place) * plan.apart + at[hit] + members.start
        row, scores = row[hit], products[hit, place].float() * square - gallery.half[column]
        self._hold(row, column, scores)
        self.met += 1
        if self.met >= TIGHTEN * self.renewed_at:
            self.renew(exactly=self.coarse and self.met in (1, 4, 16))

    def _open(self, runs: Tensor, square: float, below: Tensor) -> None:
        """First thresholds: k distinct items certainly reach the k-th greatest run maximum, less the
        error."""
        size = (len(self.rows), self.sweep.plan.capacity)
        self.scores, self.columns = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.int32)
        if runs.shape[1] >= self.sweep.k:
            products = runs.topk(self.sweep.k, dim=1).values[:, -1].double() * square
            self.threshold = _written_below(products, self.sweep.plan.precision) - below

    def _hold(self, row: Tensor, column: Tensor, scores: Tensor) -> None:
        """Append candidates, `row` ascending; where they do not fit, make room or give the query up."""
        capacity = self.sweep.plan.capacity
        added = torch.bincount(row, minlength=len(self.rows))
        if int((self.used + added).max()) > capacity:
            self.renew(exactly=True)
            near = scores >= _float_below(self.limit)[row]
            row, column, scores = row[near], column[near], scores[near]
            added = torch.bincount(row, minlength=len(self.rows))
            full = self.used + added > capacity
            self.threshold[full] = torch.inf
            near = ~full[row]
            row, column, scores = row[near], column[near], scores[near]
            added.masked_fill_(full, 0)
        # Rows ascend, so a candidate's slot is its place in the list, moved to where its row's free
        # slots begin.
        free = torch.arange(len(self.rows)) * capacity + self.used - (added.cumsum(0) - added)
        slot = free[row] + torch.arange(len(row))
        self.scores.view(-1)[slot] = scores
        self.columns.view(-1)[slot] = column.int()
        self.used += added

    @property
    def limit(self) -> Tensor:
        """`(m,)` float64: a candidate whose score is below this is certainly none of the k nearest."""
        return _written_below(self.threshold - self.error, self.sweep.plan.precision)

    def renew(self, exactly: bool) -> None:
        """Raise the thresholds to what the k best so far certainly reach, and drop what they exclude."""
        self.renewed_at = max(self.met, 1)
        k, width = self.sweep.k, int(self.used.max())
        if width < k:
            return
        scores, order = self.scores[:, :width].sort(dim=1, descending=True)
        columns = self.columns[:, :width].gather(1, order)
        if exactly:
            best = self._positions(scores[:, :k], columns[:, :k])
            kth = from_keys(exact_keys(self.sweep.problem, self.rows, best, k, packed=True)[:, -1])[0]
            reached = score_of(self.sweep.problem.queries, self.rows, kth.double())
        else:
            reached = _written_below(scores[:, k - 1].double(), self.sweep.plan.precision) - self.error
        self.threshold = torch.maximum(self.threshold, reached)
        scores[scores < _float_below(self.limit)[:, None]] = -torch.inf
        self.scores[:, :width], self.columns[:, :width] = scores, columns
        self.used = (scores > -torch.inf).sum(dim=1)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Keys `(m, k)` of the nearest, and `(m,)` bool: false for a query that was given up."""
        self.renew(exactly=self.coarse)
        width = max(int(self.used.max()), 1)
        positions = self._positions(self.scores[:, :width], self.columns[:, :width])
        self.scores, self.columns = torch.empty(0), torch.empty(0, dtype=torch.int32)
        keys = exact_keys(self.sweep.problem, self.rows, positions, self.sweep.k, packed=True)
        return keys, self.threshold < torch.inf

    def _positions(self, scores: Tensor, columns: Tensor) -> Tensor:
        return torch.where(scores > -torch.inf, self.sweep.gallery.order[columns.long()], LAST)


def _maxima(products: Tensor, dim: int) -> Tensor:
    """Maxima along `dim`. Those of bfloat16 are right where positive, and else not positive: all that a
    positive limit asks for, and comparing the bits as integers is several times faster."""
    if products.dtype != torch.bfloat16:
        return products.amax(dim=dim)
    return products.view(torch.int16).amax(dim=dim).view(torch.bfloat16)


def _written_below(values: Tensor, precision: Precision) -> Tensor:
    """No true value that reaches `values` is written as less than this, and the other way round."""
    return torch.where(values.isinf(), values, values - values.abs() * WRITTEN[precision])


def _float_below(values: Tensor) -> Tensor:
    """float32 not above `values` (float64); infinities stay."""
    return torch.where(values.isinf(), values, values - values.abs() * 2.0**-22).float()
