"""Get a published data set: download it where that is allowed, unpack it, and count it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from unseen.config.command_line import UsageError, building, command

if TYPE_CHECKING:
    from unseen.data.manifest import Manifest


@command("prepare")
def main(config: DictConfig) -> None:
    """Make `data=<name>` readable, and say what it holds."""
    if "data" not in config:
        raise UsageError("Name the data set: unseen prepare data=cub")
    if "download" not in config.data:
        raise UsageError("There is nothing to download for this data: it is your own, or generated.")
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from hydra.errors import InstantiationException
    from rich import print as show

    from unseen.config.targets import instantiate
    from unseen.data.acquire.download import RemoteFile
    from unseen.data.acquire.prepare import prepare

    def read() -> Manifest:
        try:
            return instantiate(config.data.source)
        except InstantiationException as error:
            raise error.__cause__ or error from None

    with building():
        manifest = prepare(
            Path(config.data.root).expanduser(),
            [RemoteFile(**file) for file in config.data.download.files],
            config.data.download.page,
            read,
            **config.download,
        )
    for role in dict.fromkeys(manifest.roles.tolist()):
        rows = manifest.roles == role
        show(f"{role}: {rows.sum():,} images of {len(set(manifest.labels[rows].tolist())):,} classes")
    show(f"Ready in {manifest.root}")


if __name__ == "__main__":
    main()
