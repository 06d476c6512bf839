"""What a sweep has done and has to do, read from its jobs' folders; nothing else is remembered anywhere."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from unseen.sweep.job import LOG, Job, State
from unseen.sweep.lock import BUSY
from unseen.tracking.record import RunRecord
from unseen.tracking.table import duration

STYLES = {
    State.DONE: "green",
    State.RUNNING: "cyan",
    State.INTERRUPTED: "yellow",
    State.FAILED: "red",
    State.TO_DO: "",
}


class Outcome(NamedTuple):
    """What became of a job that a launcher was given.

    Args:
        job: the job.
        status: with which its process left; none where nobody waited for it.
        seconds: that it took.
    """

    job: Job
    status: int | None
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it was tried, here, and is not done."""
        return self.status not in (0, None, BUSY)


def survey(jobs: Sequence[Job]) -> dict[Job, State]:
    """The state of each job now."""
    return {job: job.state for job in jobs}


def table(states: Mapping[Job, State]) -> Table:
    """A row for each job: its state, and its result, its error, or how far it got."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("job", overflow="fold")
    made.add_column("state", no_wrap=True)
    made.add_column("", overflow="fold")
    for job, state in states.items():
        made.add_row(
            escape(job.name), f"[{STYLES[state]}]{state}[/]" if STYLES[state] else state, _about(job, state)
        )
    return made


def _about(job: Job, state: State) -> str:
    if state == State.DONE:
        return f"{result(job)} · {duration(_seconds(job))}"
    if state == State.FAILED:
        return escape(first_line(job.error))
    return ""


def result(job: Job) -> str:
    """Of a job that is done: Recall@1 on the unseen classes, or the first metric that there is."""
    unseen = RunRecord.load(job.folder / "record.json").metrics.get("unseen", {})
    name = "recall_at_1" if "recall_at_1" in unseen else next(iter(unseen), "")
    return f"unseen {'R@1' if name == 'recall_at_1' else name} {100 * unseen[name]:.1f} %" if name else ""


def first_line(error: str | None) -> str:
    """Of an error, for a table."""
    return next(iter((error or "").strip().splitlines()), "")


def forecast(states: Mapping[Job, State], at_once: int | None) -> str:
    """How many jobs are in which state, and how long what is left takes, going by those that are done.

    Args:
        states: of all jobs.
        at_once: how many jobs run at once; none where the launcher does not know.
    """
    left = sum(state in (State.TO_DO, State.INTERRUPTED, State.FAILED) for state in states.values())
    took = [_seconds(job) for job, state in states.items() if state == State.DONE]
    took = [seconds for seconds in took if seconds > 0]
    text = f"{counted(states)}."
    if not left:
        return text
    if not took:
        return f"{text} How long they take is known when the first is done."
    each = statistics.median(took)
    if at_once is None:
        return f"{text} A job took {duration(each)}."
    total = duration(each * math.ceil(left / at_once))
    together = f", {at_once} at once" if at_once > 1 else ""
    return f"{text} A job took {duration(each)}: about {total} left{together}."


def counted(states: Mapping[Job, State]) -> str:
    """`12 jobs: 4 done, 8 to do`."""
    counts = Counter(states.values())
    parts = [f"{counts[state]} {state}" for state in State if counts[state]]
    return f"{len(states)} job{'s' if len(states) != 1 else ''}: {', '.join(parts)}"


def summary(states: Mapping[Job, State], outcomes: Sequence[Outcome], root: Path) -> str:
    """After the launcher: what there is now, where it is, and what failed."""
    lines = [f"{counted(states)}. Everything is in {root}"]
    failed = [outcome.job for outcome in outcomes if outcome.failed and states[outcome.job] != State.DONE]
    lines += [f"[red]{states[job]}[/] {escape(job.name)}: see {job.folder / LOG}" for job in failed]
    if failed or any(state not in (State.DONE, State.RUNNING) for state in states.values()):
        lines.append("The same command again goes on: it skips what is done.")
    return "\n".join(lines)


def _seconds(job: Job) -> float:
    """That a job took, over all its attempts that came to an end."""
    return sum(attempt.seconds for attempt in job.attempts)
