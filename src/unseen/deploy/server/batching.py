"""Requests that come at the same time are answered together: a batch costs little more than one image."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batching(Generic[Item, Answer]):
    """One thread that does all that waits for it at once.

    It never waits for more to come: while it works, requests gather by themselves.

    Args:
        work: items → an answer for each; runs in that thread alone.
        most: items at a time.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Answer]], most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batching", daemon=True)
        self._thread.start()

    async def ask(self, item: Item) -> Answer:
        """The answer to one item; raises what `work` raises."""
        future: Future[Answer] = Future()
        self._waiting.put((item, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread, after what waits already."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._most and not self._waiting.empty():
                one = self._waiting.get()
                if one is None:
                    self._answer(batch)
                    return
                batch.append(one)
            self._answer(batch)

    def _answer(self, batch: Sequence[tuple[Item, Future[Answer]]]) -> None:
        # Whoever has gone away needs no answer.
        wanted = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            answers = self._work([item for item, _ in wanted])
        except Exception as error:  # it is for who asked, and the thread must go on
            for _, future in wanted:
                future.set_exception(error)
            return
        for (_, future), answer in zip(wanted, answers, strict=True):
            future.set_result(answer)
