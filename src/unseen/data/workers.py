"""Processes that load images outlive the signals that are meant for the process that trains."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

T_co = TypeVar("T_co", covariant=True)


class Loader(DataLoader[T_co]):
    """A `DataLoader` whose workers start while signals wait, as long as `start_worker` is not done.

    So all threads of a worker block them, those too that other packages start in every new process: one that
    did not would let the worker end.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with _waiting_signals():
            return super().__iter__()


@contextmanager
def _waiting_signals() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def start_worker(worker: int, rank: int) -> None:
    """In a worker of a `DataLoader` (its `worker_init_fn`): seed it, and let Ctrl-C and SIGTERM not end it.

    A terminal, `timeout` and most schedulers send a signal to all processes of a job at once. Would workers
    end by it, then the training process would find its workers gone before its step is over and its
    checkpoint written. SIGTERM of the process that made the worker ends it, as it does without this.

    Args:
        worker: the worker's number among those of its process.
        rank: the number of its process. Both are part of the seed of Python's and NumPy's generators, which
            a transform of one's own may draw from.
    """
    pl_worker_init_function(worker, rank)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)
