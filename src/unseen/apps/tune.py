"""Seek hyper-parameters on held-out training classes; the same command goes on."""

from __future__ import annotations

from hydra._internal.utils import get_args_parser

from unseen.config.command_line import explained, help_text
from unseen.config.values import UsageError


def main() -> None:
    """Leave with 0 when the budget is spent, 1 if no trial came to a value, 130 after Ctrl-C."""
    arguments = get_args_parser().parse_intermixed_args()
    with explained():
        if arguments.help:
            named = [word for word in arguments.overrides if "=" not in word]
            print(help_text("tune", arguments.config_dir, named))
            return
        try:
            from unseen.config.tune import tune
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UsageError("unseen tune needs Optuna: pip install 'unseen-dml[tune]'.") from error

        raise SystemExit(tune(arguments.overrides, arguments.config_dir))


if __name__ == "__main__":
    main()
