"""Processes that load images outlive the signals that are meant for the process that trains."""

from __future__ import annotations

import os
import signal
import sys
import threading

from lightning.fabric.utilities.seed import pl_worker_init_function


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
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)
