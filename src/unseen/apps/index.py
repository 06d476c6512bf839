"""Index a gallery for approximate search whose recall is measured, or take images out of it."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import UsageError


@command("index")
def main(config: DictConfig) -> None:
    """Build the index, and say what it is worth against exact search."""
    if "index" not in config and not config.remove:
        raise UsageError(
            "Nothing to do. Give index=<kind> (unseen index --help index), or remove=[<id or path>]."
        )
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from unseen.deploy.gallery import Gallery
    from unseen.deploy.index.indexed import build_index, remove_index

    with building():
        gallery = Gallery.open(str(config.gallery))
        if config.remove:
            gallery.remove(gallery.ids_of(list(config.remove)))
            print(f"{len(config.remove)} images taken out; {len(gallery)} are left.")
        if "index" not in config:
            return
        if config.index is None:
            remove_index(gallery)
            print(f"{len(gallery)} images, searched exactly.")
            return
        kind = {str(key): value for key, value in config.index.items()}
        measured = build_index(gallery, kind, recall=float(config.recall), k=int(config.k))
    print(
        f"{len(gallery)} images indexed: finds {100 * measured.recall:.1f} % of the {measured.k} nearest "
        f"(of {measured.sample} images) in {measured.milliseconds:.2g} ms a query, exact search takes "
        f"{measured.exact_milliseconds:.2g} ms; {measured.bytes / 1e6:.3g} MB on disk."
    )


if __name__ == "__main__":
    main()
