"""A network that nobody trained, a gallery of coloured noise, and servers of them."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

import unseen
from unseen.data.transforms import resized_center
from unseen.deploy.embedding import embed_images
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import list_images
from unseen.deploy.model import Model
from unseen.deploy.server.app import application
from unseen.deploy.server.guard import LOOPBACK
from unseen.deploy.server.side import Side
from unseen.pictures.attention import overlay


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 40, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_model(seed: int, fusion: str = "attention") -> Model:
    torch.manual_seed(seed)
    embedder = unseen.embedder("resnet10", weights="none", image_size=32, fusion=fusion, size=16)
    if fusion == "attention":
        torch.nn.init.normal_(embedder.fusion.weights)
    embedder.readout = None
    facts = {"bundle": f"{seed:02}" * 32, "data": "noise", "metrics": {"unseen": {"recall_at_1": 0.5}}}
    return Model(embedder.requires_grad_(False).eval(), resized_center(32, 1.0), facts)


@pytest.fixture(scope="session")
def sides(coloured_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Side]:
    """Two bundles with their galleries of the same files."""
    found = []
    for name, model in (("first", make_model(1)), ("second", make_model(2, "last"))):
        folder = tmp_path_factory.mktemp("galleries") / name
        embed_images(model, list_images(coloured_tree), folder, batch_size=64, progress=lambda _: None)
        found.append(Side(name, model, Gallery.open(folder)))
    return found


@pytest.fixture(scope="session")
def make_app(sides: list[Side]) -> Callable[..., Any]:
    def made(count: int = 1, **options: Any) -> Any:
        chosen = {"k": 5, "draw": overlay, "hosts": LOOPBACK, "token": None} | options
        return application(sides[:count], **chosen)

    return made


@pytest.fixture(scope="session")
def client(make_app: Callable[..., Any]) -> Iterator[TestClient]:
    """Of a server of two bundles."""
    with TestClient(make_app(2), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def listen() -> Iterator[Callable[[Any], str]]:
    """`listen(app)`: serve it by uvicorn in a thread; gives its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listening(app: Any) -> str:
        opened = socket.create_server(("127.0.0.1", 0), backlog=512)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{opened.getsockname()[1]}"

    yield listening
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
