"""Seek hyper-parameters on held-out training classes; the same command goes on."""

from __future__ import annotations

from collections.abc import Sequence

from unseen.config.command_line import start_runs
from unseen.config.values import UsageError


def main() -> None:
    """Leave with 0 when the budget is spent, 1 if no trial came to a value, 130 after Ctrl-C."""
    start_runs("tune", "search", _start)


def _start(typed: Sequence[str], config_dir: str | None) -> int:
    # Here, because `--help` need not wait for it.
    try:
        from unseen.config.tune import tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UsageError("unseen tune needs Optuna: pip install 'unseen-dml[tune]'.") from error
    return tune(typed, config_dir)


if __name__ == "__main__":
    main()
