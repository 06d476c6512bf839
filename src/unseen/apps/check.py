"""Look at every image of a data set before training on it, and report what is wrong."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import NO_SOURCE, UsageError


@command("check")
def main(config: DictConfig) -> None:
    """Write the report and the quarantine list; leave with status 1 if the data must not be trained on."""
    if "data" not in config:
        raise UsageError("Name the data: unseen check data=folder data.root=<folder>")
    if config.data.source is None:
        raise UsageError(NO_SOURCE)
    if Path(config.output).is_file():
        raise UsageError(f"output={config.output}: that is a file. Name a folder.")
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from rich.console import Console
    from rich.markdown import Markdown

    from unseen.config.targets import instantiate
    from unseen.data.inspect.preflight import watched_preflight
    from unseen.data.module import listed_paths, without

    console = Console(stderr=True)
    with building():
        everything = instantiate(config.data.source)
        excluded = listed_paths(config.data.exclude, everything)
        report = watched_preflight(
            without(everything, excluded),
            config.check,
            console,
            crop_to_box=config.data.crop_to_box,
            excluded=excluded,
        )
        report.write(Path(config.output))
    console.print(Markdown(report.markdown()))
    console.print(f"Written to {config.output}: report.md, report.json, quarantine.txt")
    for error in report.errors:
        console.print(f"error: {error}", style="red", markup=False)
    if report.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
