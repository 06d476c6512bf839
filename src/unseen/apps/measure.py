"""Measure finished runs again: with another readout, by other metrics, on other images."""

from __future__ import annotations

from collections.abc import Sequence

from unseen.config.command_line import start_runs


def main() -> None:
    """Leave with 0 when every run is measured."""
    start_runs("measure", "measurement of several runs", _start)


def _start(typed: Sequence[str], config_dir: str | None) -> int:
    # Here, because `--help` need not wait for it.
    from unseen.config.measure import measure_again

    return measure_again(typed, config_dir)


if __name__ == "__main__":
    main()
