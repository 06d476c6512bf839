"""Find near-duplicates, outliers and labels that look wrong in a gallery."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import UsageError

SHOWN = 5
"""Rows of each kind on the terminal."""


@command("inspect")
def main(config: DictConfig) -> None:
    """Write tables of what is odd, and print the oddest."""
    if config.bundle is None and config.duplicate is None:
        raise UsageError(
            "Give bundle=<folder>, by which the similarity of copies is measured, or duplicate=<similarity>."
        )
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from pathlib import Path

    from unseen.deploy.bundle import load
    from unseen.deploy.gallery import Gallery
    from unseen.deploy.inspection import PAIR, inspect, similarity_of_copies
    from unseen.deploy.model import default_device
    from unseen.deploy.results import show_table, write

    with building():
        gallery = Gallery.open(str(config.gallery))
        duplicate = config.duplicate
        if duplicate is None:
            model = load(str(config.bundle), config.device or default_device())
            duplicate = similarity_of_copies(model, gallery, float(config.copies))
            print(f"{100 * config.copies:g} % of copies are at least {duplicate:.4f} similar to their image.")
        found = inspect(
            gallery,
            duplicate=float(duplicate),
            outlier=float(config.outlier),
            agreement=float(config.agreement),
            k=int(config.k),
        )
        folder = Path(config.output or gallery.folder / "inspection")
        for name, rows in vars(found).items():
            columns = PAIR if name == "duplicates" else list(found.images[0])
            write(rows, folder / f"{name}.{config.tables}", columns)
    errors = sum(not pair["same_label"] for pair in found.duplicates)
    groups = len({pair["group"] for pair in found.duplicates})
    for sentence, rows, columns in (
        (
            f"{len(found.duplicates)} pairs of near-duplicates in {groups} groups; "
            f"{errors} pairs have two labels",
            sorted(found.duplicates, key=lambda pair: pair["same_label"]),
            ["similarity", "id_1", "label_1", "id_2", "label_2"],
        ),
        (
            f"{len(found.outliers)} of {len(gallery)} images lie far from their class",
            found.outliers,
            ["outlier_factor", "distance_to_class", "id", "label", "path"],
        ),
        (
            f"{len(found.labels)} labels look wrong",
            found.labels,
            ["id", "label", "neighbours_label", "neighbours_share", "path"],
        ),
    ):
        show_table(sentence, rows[:SHOWN], columns)
    print(f"Tables: {folder}")


if __name__ == "__main__":
    main()
