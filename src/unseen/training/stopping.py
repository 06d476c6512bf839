"""Ctrl-C and SIGTERM end a run in order: training after its step and with a checkpoint, all else at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Stopped(SystemExit):
    """A signal ended the run; the status is the shell's for that signal, such as 143 for SIGTERM.

    Args:
        kind: the signal.
    """

    def __init__(self, kind: int) -> None:
        super().__init__(128 + kind)
        self.kind = signal.Signals(kind)

    def __str__(self) -> str:
        return self.kind.name


class StoppedWithinStepError(Stopped):
    """Ctrl-C came twice: the step is half made, so no checkpoint may be written of it."""


@contextmanager
def orderly_stop() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM raise `Stopped`; while Lightning trains, when the step is over.

    Raises:
        Stopped: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield
        return
    asked: list[int] = []

    def on_signal(kind: int, frame: FrameType | None) -> None:
        # While it trains, Lightning has a handler of its own, which notes SIGTERM and then calls this one.
        trains = signal.getsignal(signal.SIGTERM) is not on_signal
        if not trains:
            raise Stopped(kind)
        if kind == signal.SIGINT and asked:
            raise StoppedWithinStepError(kind)
        if not asked:
            asked.append(kind)
            print("\nStops after this step (Ctrl-C again: at once) ...", file=sys.stderr, flush=True)
            if kind == signal.SIGINT:
                signal.raise_signal(signal.SIGTERM)

    before = {kind: signal.signal(kind, on_signal) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if asked:  # in the last step of all
            raise Stopped(asked[0])
    except SIGTERMException:
        raise Stopped(asked[0] if asked else signal.SIGTERM) from None
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def stop_together(trainer: Trainer) -> None:
    """Let all processes of a run stop before the same step, whichever of them a signal reached, and when.

    Lightning 2.6 broadcasts from within its handler, amid what the processes exchange just then: they take
    one message for another, and end in memory errors or wait for ever. Here the handler only notes the
    signal, and the exchange that Lightning makes before each step tells the others.

    Args:
        trainer: before it trains.
    """
    signals, steps = trainer._signal_connector, trainer.fit_loop.epoch_loop
    alone, asked = signals._sigterm_notifier_fn, False

    def note(kind: Any, frame: Any) -> None:
        nonlocal asked
        asked = True
        if trainer.world_size == 1:
            alone(kind, frame)

    def agree() -> None:
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            raise SIGTERMException

    signals._sigterm_notifier_fn = note  # type: ignore[assignment, method-assign]
    steps._broadcast_sigterm_tensor = agree  # type: ignore[method-assign]
