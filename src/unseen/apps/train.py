"""Train on seen classes, measure on unseen ones, and write the run's record and pictures."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import UsageError, building, command
from unseen.config.values import check_devices


@command("train")
def main(config: DictConfig) -> float | None:
    """One run; its value, for a sweep to maximise, is MAP@R on the validation classes where there are any."""
    check_devices(config.trainer)
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from unseen.config.build import build
    from unseen.data.images import ImageError
    from unseen.training.progress import quiet
    from unseen.workflow.run import execute

    try:
        with quiet():
            with building():
                run = build(config)
            record = execute(run)
    except ImageError as error:
        # A loading process puts its traceback before the message.
        message = (
            str(error).splitlines()[-1].removeprefix(f"{ImageError.__module__}.{type(error).__name__}: ")
        )
        raise UsageError(message) from error
    return None if record is None else record.metrics.get("validation", {}).get("map_at_r")


if __name__ == "__main__":
    main()
