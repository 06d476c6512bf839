"""Embed images into a gallery that can be searched; the same command goes on."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import texts


@command("embed")
def main(config: DictConfig) -> None:
    """Embed what is new, with progress, and say what could not be read."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from unseen.config.targets import instantiate
    from unseen.deploy.bundle import load
    from unseen.deploy.embedding import UNREADABLE, embed_images
    from unseen.deploy.listing import list_images
    from unseen.deploy.progress import counting

    with building():
        where = texts(config.where)
        listing = list_images(str(config.images)).only(where)
        runner = instantiate(config.runner)
        model = load(str(config.bundle))
        with counting(len(listing), "Embedding") as progress:
            outcome = embed_images(
                model,
                listing,
                str(config.gallery),
                batch_size=int(config.batch_size),
                progress=progress,
                runner=runner,
            )
    known = f", {outcome.known} were there already" if outcome.known else ""
    print(f"{outcome.embedded} images embedded into {config.gallery}{known}.")
    if outcome.unreadable:
        print(f"{len(outcome.unreadable)} could not be read: {config.gallery}/{UNREADABLE}")
        if not outcome.embedded and not outcome.known:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
