"""How far long work has come: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more are done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        with Progress(
            *Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    start = said = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if (now := time.monotonic()) - said >= EVERY:
            said = now
            print(f"{what}: {done} of {total}, {done / (now - start):.0f} a second", file=sys.stderr)

    yield advance
