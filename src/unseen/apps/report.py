"""Compare finished runs by their records: what is better, what is not, and what one cannot tell."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from unseen.config.command_line import building, command


@command("report")
def main(config: DictConfig) -> None:
    """Print the comparison, write its tables, and publish it where that was asked for."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from rich.console import Console

    from unseen.config.targets import instantiate
    from unseen.report.comparison import compare
    from unseen.report.explorer import write_errors
    from unseen.report.page import write_page
    from unseen.report.runs import load_runs
    from unseen.report.tables import terminal
    from unseen.report.write import write_tables

    output = Path(config.output)
    with building():
        folders = list(config.runs) if isinstance(config.runs, ListConfig) else [config.runs]
        runs = load_runs([str(folder) for folder in folders])
        comparison = compare(
            runs,
            str(config.compare),
            reference=str(config.reference),
            metrics=list(config.by),
            margin=config.margin,
            split=config.split,
            cells=list(config.cells),
            level=config.level,
        )
        written = write_tables(output, comparison, runs)
        if config.explorer:
            write_errors(runs.finished)
        page = output / "comparison.html"
        write_page(page, comparison, runs)
    console = Console()
    console.print(terminal(comparison))
    for unreadable in runs.unreadable:
        console.print(f"Left out: {unreadable.reason}", markup=False, style="red", soft_wrap=True)
    if runs.waiting:
        console.print(
            f"Jobs without a record yet: {len(runs.waiting)}. This compares a part.", style="yellow"
        )
    names = ", ".join(path.name for path in (page, *written))
    console.print(f"{len(runs.finished)} finished runs. Written to {output}: {names}", soft_wrap=True)
    if config.get("to") is not None:
        with building():
            console.print(str(instantiate(config.to)(comparison, runs)), soft_wrap=True)


if __name__ == "__main__":
    main()
