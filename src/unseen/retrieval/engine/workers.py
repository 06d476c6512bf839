"""Threads that each take whole pieces of work alone.

Threads that meet after each small operation cost more than the operation, above all on a busy machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Event, Lock
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def share_out(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Do `work` on each piece, in about their order, on as many threads as torch has."""
    remaining, lock, stop = iter(pieces), Lock(), Event()

    @torch.inference_mode()  # its tensors may be those of a caller in that mode, and modes are a thread's own
    def take(_: int) -> None:
        while not stop.is_set():
            with lock:
                piece = next(remaining, None)
            if piece is None:
                return
            work(piece)

    threads = torch.get_num_threads()
    try:
        list(_workers(threads).map(take, range(threads)))
    finally:
        stop.set()  # after an error, or an interrupt, nobody starts another piece


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    """As many workers; in them torch uses one thread."""
    pool, together = ThreadPoolExecutor(threads), Barrier(threads)

    def one_thread(_: int) -> None:
        together.wait()
        torch.set_num_threads(1)

    list(pool.map(one_thread, range(threads)))
    # What the workers set holds for them, and for libraries without such a notion.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # threads do not survive a fork
