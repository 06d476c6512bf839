"""Search a gallery by image on a page, one bundle or two side by side; the same as JSON."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import UsageError


@command("demo")
def main(config: DictConfig) -> None:
    """Serve until Ctrl-C."""
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    try:
        from unseen.deploy.server.serve import open_sides, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        raise UsageError(
            "unseen demo needs Starlette and uvicorn: pip install 'unseen-dml[serve]'."
        ) from error
    from unseen.pictures.attention import overlay

    with building():
        sides = open_sides(_several(config.bundle), _several(config.gallery), config.device)
        serve(
            sides,
            host=str(config.host),
            port=int(config.port),
            token=None if config.token is None else str(config.token),
            k=int(config.k),
            false_accepts=float(config.false_accepts),
            unknown_accepts=float(config.unknown_accepts),
            draw=overlay,
        )


def _several(value: object) -> list[str]:
    """One folder, or several."""
    return [str(value)] if isinstance(value, str) else [str(one) for one in value]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
