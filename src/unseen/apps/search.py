"""Find the images of a gallery that are nearest to an image, or to each of many."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import texts

SHOWN = 10
"""Queries on the terminal; more go into a file."""


@command("search")
def main(config: DictConfig) -> None:
    """Search, and show the neighbours or write them."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from unseen.deploy.bundle import load
    from unseen.deploy.gallery import Gallery
    from unseen.deploy.index.indexed import searchable
    from unseen.deploy.model import default_device
    from unseen.deploy.queries import embed_queries, rows_of
    from unseen.deploy.results import check_table, show, write

    with building():
        if config.output is not None:
            check_table(Path(config.output))
        gallery = Gallery.open(str(config.gallery))
        where = texts(config.where)
        gallery.select(where)
        model = load(str(config.bundle), config.device or default_device())
        gallery.require(str(model.facts["bundle"]))
        queries = embed_queries(model, str(config.query), crop=config.crop, fused=bool(config.fused))
        found = searchable(gallery).search(queries.embeddings, int(config.k), where)
        rows = rows_of(queries, found, gallery)
        if config.output is not None:
            write(rows, Path(config.output))
            print(f"{len(queries.names)} queries. Written to {config.output}")
        elif rows:
            show(rows, most=SHOWN)
        if not rows:
            print("Nothing found: the gallery is empty, or none of its images has these texts.")


if __name__ == "__main__":
    main()
