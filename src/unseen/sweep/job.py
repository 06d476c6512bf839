"""One job of a sweep; its folder says in which state it is."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from unseen.sweep.lock import holder
from unseen.tracking.record import RunRecord
from unseen.tracking.run_folder import checkpoints

FROZEN = "job.yaml"
"""In a job's folder: all that it does, resolved."""
LOG = "log.txt"
"""In a job's folder: what its process printed, attempt after attempt."""
ATTEMPTS = "attempts.jsonl"
"""In a job's folder: a line for each attempt that came to an end, failed ones too (see `Attempt`)."""


class State(StrEnum):
    """Of a job."""

    DONE = "done"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    TO_DO = "to do"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job that came to an end.

    Args:
        status: `success`, `failed` or `interrupted`.
        seconds: from the start of the process to its end.
        error: type and message, of one that failed.
        finished: ISO 8601 in UTC.
    """

    status: str
    seconds: float
    error: str | None = None
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Job:
    """What a sweep runs.

    Args:
        name: for people.
        key: of 16 hexadecimal digits; equal keys, equal runs (see `unseen.tracking.record.job_key`).
        folder: of all that the job writes; holds `job.yaml` once the job is frozen.
    """

    name: str
    key: str
    folder: Path

    @property
    def state(self) -> State:
        """As its folder says now."""
        return State.RUNNING if holder(self.folder) is not None else self.outcome

    @property
    def outcome(self) -> State:
        """Where it got to, whether or not a process is at it."""
        if (record := self.folder / "record.json").is_file():
            try:
                status = RunRecord.load(record).status
            except ValueError:
                return State.FAILED
            if status != State.INTERRUPTED:
                return State.DONE if status == "success" else State.FAILED
            return State.INTERRUPTED
        return State.INTERRUPTED if any(self.checkpoints) else State.TO_DO

    @property
    def error(self) -> str | None:
        """Why it failed; none of a job that did not."""
        try:
            return RunRecord.load(self.folder / "record.json").error
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)

    @property
    def checkpoints(self) -> list[Path]:
        """From which it can go on, the newest first."""
        return checkpoints(self.folder)

    @property
    def attempts(self) -> list[Attempt]:
        """Those that came to an end, the earliest first; a line that was cut, as by a full disk, is none."""
        path = self.folder / ATTEMPTS
        if not path.is_file():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, TypeError):
                found.append(Attempt(**json.loads(line)))
        return found

    def note(self, attempt: Attempt) -> None:
        """Write an attempt down; nothing ever takes it away."""
        with (self.folder / ATTEMPTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(attempt), ensure_ascii=False) + "\n")
