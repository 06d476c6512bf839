"""Listen at an address until Ctrl-C."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import uvicorn

from unseen.deploy.bundle import load
from unseen.deploy.model import default_device
from unseen.deploy.server.app import Draw, application
from unseen.deploy.server.guard import LOOPBACK
from unseen.deploy.server.side import Side

SHORTEST = 12
"""Letters of a token that somebody chose."""


def open_sides(bundles: Sequence[str], galleries: Sequence[str], device: str | None) -> list[Side]:
    """Bundles with their galleries.

    Args:
        bundles: folders, one or two.
        galleries: likewise, in the same order.
        device: where the networks compute; a GPU if there is one by default.

    Raises:
        ValueError: their numbers differ, one cannot be opened, or a gallery is of another bundle.
    """
    if len(bundles) != len(galleries) or len(bundles) not in (1, 2):
        raise ValueError(
            f"{len(bundles)} bundles and {len(galleries)} galleries: wanted one of each, or two of each "
            "in the same order (bundle=[a,b] gallery=[a,b])."
        )
    names = _names(bundles)
    return [
        Side.open(name, load(bundle, device or default_device()), gallery)
        for name, bundle, gallery in zip(names, bundles, galleries, strict=True)
    ]


def serve(
    sides: Sequence[Side],
    *,
    host: str,
    port: int,
    token: str | None,
    k: int,
    false_accepts: float,
    unknown_accepts: float,
    draw: Draw,
) -> None:
    """Serve the page and its JSON; prints the address in one line.

    Args:
        sides: bundles with their galleries.
        host: to listen at. Beyond this machine a token is needed, and made if none is given.
        port: 0 for any free one.
        token: that requests must bring.
        k: neighbours unless a request asks for another number.
        false_accepts: as `application` takes it.
        unknown_accepts: likewise.
        draw: likewise.

    Raises:
        ValueError: nothing can listen there, the token is too short or cannot be sent, `k` is out of range,
            or no threshold was calibrated for a share.
    """
    is_local = host in ("::1", *LOOPBACK)
    if token is None and not is_local:
        token = secrets.token_urlsafe(24)
    if token is not None:
        _require_usable(token)
    app = application(
        sides,
        k=k,
        false_accepts=false_accepts,
        unknown_accepts=unknown_accepts,
        draw=draw,
        hosts=LOOPBACK if is_local else None,
        token=token,
    )
    config = uvicorn.Config(
        # Addresses with a token in them must not be written down.
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    with _listening(host, port) as listening, contextlib.suppress(KeyboardInterrupt):
        print(f"Search by image: {address(host, listening.getsockname()[1], token)}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    everywhere = host in ("0.0.0.0", "::")  # noqa: S104
    name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _require_usable(token: str) -> None:
    if len(token) < SHORTEST:
        raise ValueError(f"token: {len(token)} letters can be guessed; wanted {SHORTEST} or more.")
    # It comes back in headers and cookies, which hold no other letters and lose spaces at an end.
    if not (token.isascii() and token.isprintable()) or token != token.strip():
        raise ValueError(
            "token: browsers and programs cannot send it back as it is. Choose one of the letters A to Z and "
            "a to z, digits and signs of ASCII, without a space at its beginning or end."
        )


def _names(folders: Sequence[str]) -> list[str]:
    """The last part of each path that tells them apart."""
    paths = [Path(folder).expanduser().absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names}) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"host={host} port={port}: nothing can listen there ({error}). Choose another port, or port=0."
        ) from error
