"""Train on seen classes, measure on unseen ones, and write the run's record and pictures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig

from unseen.config.command_line import command
from unseen.config.folder import check_folder, held
from unseen.config.quoting import quoted
from unseen.config.values import check_devices
from unseen.tracking.run_folder import CHECKPOINTS


def check(config: DictConfig) -> None:
    """Refuse a folder or devices that a run cannot have, before seconds of imports."""
    check_devices(config.trainer)
    check_folder(config)


@command("train", first=check)
def main(config: DictConfig) -> float | None:
    """One run; its value, for a sweep to maximise, is MAP@R on the validation classes where there are any."""
    with held(Path(config.run_folder)):
        # Here, because `--help` and a typing error need not wait for seconds of imports.
        from lightning.pytorch.utilities import rank_zero_only

        from unseen.config.run import run
        from unseen.training.stopping import Stopped

        try:
            record = run(config)
        except Stopped:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(_going_on(Path(config.run_folder)), file=sys.stderr)
            raise
    return None if record is None else record.metrics.get("validation", {}).get("map_at_r")


def _going_on(folder: Path) -> str:
    """What is left of a run that was stopped, and the command that goes on with it."""
    last = folder / CHECKPOINTS / "last.ckpt"
    if not last.is_file():
        return "Stopped before the first checkpoint."
    earlier = ("resume_from=", "hydra.run.dir=")
    words = [word for word in sys.argv[1:] if not word.startswith(earlier)]
    words += [f"hydra.run.dir={quoted(folder)}", f"resume_from={quoted(last)}"]
    command = shlex.join(["unseen", "train", *words])
    return f"Stopped. There is a checkpoint; this goes on:\n  {command}"


if __name__ == "__main__":
    main()
