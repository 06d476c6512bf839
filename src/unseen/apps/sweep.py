"""Run a grid of jobs, or what is left of it: skips what is done, resumes, retries."""

from __future__ import annotations

from collections.abc import Sequence

from unseen.config.command_line import start_runs


def main() -> None:
    """Leave with 0 when every job is done or under way, 1 if one failed, 130 after Ctrl-C."""
    start_runs("sweep", "sweep", _start)


def _start(typed: Sequence[str], config_dir: str | None) -> int:
    # Here, because `--help` need not wait for it.
    from unseen.config.sweep import sweep

    return sweep(typed, config_dir)


if __name__ == "__main__":
    main()
