"""Make a bundle of a finished run: its weights, preparation and facts, to be used anywhere."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from unseen.config.command_line import building, command


@command("export")
def main(config: DictConfig) -> None:
    """Write the bundle, after it was seen to embed real images as the run did."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from rich.console import Console

    from unseen.config.export import export

    with building():
        folder = export(Path(config.run), None if config.output is None else Path(config.output))
    Console().print(f"Bundle written to {folder}. Use it: unseen.load('{folder}').embed([…])", soft_wrap=True)


if __name__ == "__main__":
    main()
