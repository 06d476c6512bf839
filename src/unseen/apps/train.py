"""Train on seen classes, measure on unseen ones, and write the run's record and pictures."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import command


@command("train")
def main(config: DictConfig) -> float | None:
    """One run; its value, for a sweep to maximise, is MAP@R on the validation classes where there are any."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from unseen.config.run import run

    record = run(config)
    return None if record is None else record.metrics.get("validation", {}).get("map_at_r")


if __name__ == "__main__":
    main()
