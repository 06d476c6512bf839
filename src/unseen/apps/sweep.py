"""Run a grid of jobs, or what is left of it: skips what is done, resumes, retries."""

from __future__ import annotations

from hydra._internal.utils import get_args_parser

from unseen.config.command_line import explained, help_text


def main() -> None:
    """Leave with 0 when every job is done or under way, 1 if one failed, 130 after Ctrl-C."""
    arguments = get_args_parser().parse_intermixed_args()
    with explained():
        if arguments.help:
            named = [word for word in arguments.overrides if "=" not in word]
            print(help_text("sweep", arguments.config_dir, named))
            return
        from unseen.config.sweep import sweep

        raise SystemExit(sweep(arguments.overrides, arguments.config_dir))


if __name__ == "__main__":
    main()
