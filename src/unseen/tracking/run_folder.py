"""Where a run keeps its checkpoints, and what it left in its folder."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"
FINISHED = "[!.]*.ckpt"
"""Names of checkpoints; one that is being written is hidden."""
LAST = "last"
"""What is typed in place of the path of a checkpoint: the newest one."""


def checkpoints(folder: Path) -> list[Path]:
    """Of the run in a folder, the newest first."""
    return newest_first(list((Path(folder) / CHECKPOINTS).glob(FINISHED)))


def newest_first(paths: list[Path]) -> list[Path]:
    """By the time at which they were written."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def traces(folder: Path) -> list[str]:
    """Names of what a run left in a folder that another one would mix with or destroy; none in a free one."""
    names = [name for name in ("record.json", "metrics.csv") if (Path(folder) / name).is_file()]
    return names + ([CHECKPOINTS] if checkpoints(folder) else [])
