"""All pairs in low precision, tile by tile, keeping every pair that may be among the k nearest.

Each query holds a threshold: a lower bound on the true score of its k-th nearest. A pair is dropped only
if its rounded product plus the error bound stays below. When queries are the gallery, a tile serves its
rows and its columns, so half of the tiles suffice. Like vectors stand together and meet first, so that
thresholds are tight early.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from unseen.retrieval.engine import kernels
from unseen.retrieval.engine.inputs import SearchInputs
from unseen.retrieval.engine.kernels import (
    HIDDEN,
    Candidates,
    Pairs,
    Tile,
    decide,
    rows_of,
    scan_columns,
    scan_rows,
)
from unseen.retrieval.engine.keys import LAST, to_keys, top
from unseen.retrieval.engine.rounding import (
    PRODUCT_DTYPES,
    WRITTEN,
    error_terms,
    multiply,
    round_to,
)
from unseen.retrieval.engine.tiling import Tiling, like_with_like
from unseen.retrieval.engine.workers import share_out

SIMILARITIES = {"cosine": kernels.COSINE, "dot": kernels.DOT, "euclidean": kernels.EUCLIDEAN}


class Sweep:
    """The whole pass: `run` gives the keys `(N, k)` of all queries, k the deepest of them, and, `(N,)` bool,
    which of them are decided. Behind the `depth[i]` nearest of query i stands whatever was left."""

    def __init__(self, inputs: SearchInputs, depth: Tensor, tiling: Tiling) -> None:
        self.inputs, self.depth, self.tiling = inputs, depth, tiling
        self.deepest = int(depth.max())
        order = like_with_like(inputs.gallery, tiling.side)
        self.gallery = round_to(inputs.gallery, order, tiling.side, tiling.precision)
        self.queries, self.own = self.gallery, None
        if not inputs.symmetric:
            rows = like_with_like(inputs.queries, tiling.side)
            self.queries = round_to(inputs.queries, rows, tiling.side, tiling.precision)
            if bool((inputs.own >= 0).any()):
                place = torch.empty_like(order)
                place[order] = torch.arange(len(order))
                self.own = torch.where(inputs.own >= 0, place[inputs.own.clamp(min=0)], -1)[rows]
        self.pairs = Pairs(
            similarity=SIMILARITIES[inputs.gallery.similarity],
            queries=inputs.queries.raw.numpy(),
            query_factor=inputs.queries.factor.numpy(),
            gallery=inputs.gallery.raw.numpy(),
            gallery_factor=inputs.gallery.factor.numpy(),
            order=order.numpy(),
        )
        self._buffers: SimpleQueue[Tensor] = SimpleQueue()

    def run(self) -> tuple[Tensor, Tensor]:
        keys = torch.empty((len(self.queries.order), self.deepest), dtype=torch.int64)
        decided = torch.empty(len(keys), dtype=torch.bool)
        side = self.tiling.side
        for _ in range(torch.get_num_threads()):
            self._buffers.put(torch.empty((side, side), dtype=PRODUCT_DTYPES[self.tiling.precision]))

        def finish(panel: Panel) -> None:
            panel.finish(keys, decided)

        starts = range(0, len(keys), side)
        for first in range(0, len(starts), self.tiling.together):
            panels = [Panel(self, start) for start in starts[first : first + self.tiling.together]]
            share_out(self._meet, self._tiles(panels))
            share_out(finish, panels)
        return keys, decided

    def _tiles(self, panels: list[Panel]) -> Iterator[tuple[Panel, int, Panel | None]]:
        """Panel, gallery panel, and the panel whose queries are its items.

        A panel meets its neighbours in the order first, and all panels move on together.
        """
        count = len(self.gallery.unit)
        for apart in range(count):
            for panel in panels:
                other = panel.index + apart
                if not self.tiling.symmetric:
                    yield panel, other % count, None
                elif other < count:
                    yield panel, other, panels[other] if apart else None

    def _meet(self, tile: tuple[Panel, int, Panel | None]) -> None:
        panel, other, mirrored = tile
        product = self._buffers.get()
        multiply(self.queries.panel(panel.index), self.gallery.panel(other), product)
        self._hide_own(panel, other, product)
        products = product.view(torch.int16 if product.itemsize == 2 else torch.int32).numpy()
        with panel.lock:
            scan_rows(products, panel.candidates, self._tile(panel.index, other), self.pairs)
        if mirrored is not None:
            with mirrored.lock:
                scan_columns(
                    products, mirrored.candidates, self._tile(mirrored.index, panel.index), self.pairs
                )
        self._buffers.put(product)

    def _hide_own(self, panel: Panel, other: int, product: Tensor) -> None:
        if self.inputs.symmetric and panel.index == other:
            product.fill_diagonal_(2 * HIDDEN)
        if self.own is not None:
            own = self.own[panel.slice] - other * self.tiling.side
            here = ((own >= 0) & (own < self.tiling.side)).nonzero().squeeze(1)
            product[here, own[here]] = 2 * HIDDEN

    def _tile(self, index: int, other: int) -> Tile:
        half = self.gallery.half[other * self.tiling.side : (other + 1) * self.tiling.side].numpy()
        dtype = PRODUCT_DTYPES[self.tiling.precision]
        return Tile(
            first=other * self.tiling.side,
            half=half,
            least_half=float(half.min()),
            coarseness=float(self.gallery.coarseness[other]),
            worth=float(self.queries.unit[index] * self.gallery.unit[other]),
            integral=not dtype.is_floating_point,
            shift=32 - 8 * dtype.itemsize,
        )


class Panel:
    """The queries of one panel, `m` of them, and what they hold."""

    def __init__(self, sweep: Sweep, start: int) -> None:
        self.sweep, self.lock = sweep, Lock()
        self.index = start // sweep.tiling.side
        self.slice = slice(start, min(start + sweep.tiling.side, len(sweep.queries.order)))
        self.rows = sweep.queries.order[self.slice]
        base, slope = error_terms(sweep.queries, self.slice, sweep.gallery)
        size = (len(self.rows), sweep.tiling.capacity)
        scores, depth = np.empty(size, dtype=np.float32), sweep.depth[self.rows].numpy()
        self.candidates = Candidates(
            depth=depth,
            rows=self.rows.numpy(),
            norm=sweep.queries.norm[self.slice].numpy(),
            scores=scores,
            bits=scores.view(np.int32),
            columns=np.empty(size, dtype=np.int32),
            used=np.zeros(len(self.rows), dtype=np.int64),
            due=np.maximum(depth, 16),
            threshold=np.full(len(self.rows), -np.inf),
            base=base.numpy(),
            slope=slope.numpy(),
            error=(base + slope * sweep.gallery.coarseness.max()).numpy(),
            written=WRITTEN[sweep.tiling.precision],
        )

    def finish(self, keys: Tensor, decided: Tensor) -> None:
        """Write, at the panel's rows, the keys of the nearest `(N, k)` and which queries were not given up
        `(N,)`."""
        for start in range(0, len(self.rows), self.sweep.tiling.piece):
            piece = slice(start, start + self.sweep.tiling.piece)
            keys[self.rows[piece]] = self._nearest(rows_of(self.candidates, piece))
        decided[self.rows] = torch.from_numpy(self.candidates.threshold) < torch.inf

    def _nearest(self, candidates: Candidates) -> Tensor:
        similarities = torch.full(candidates.scores.shape, -torch.inf, dtype=torch.float32)
        positions = torch.full(candidates.scores.shape, LAST)
        decide(candidates, self.sweep.pairs, similarities.numpy(), positions.numpy())
        width = max(int(candidates.used.max()), 1)
        return top(to_keys(similarities[:, :width], positions[:, :width]), self.sweep.deepest)
