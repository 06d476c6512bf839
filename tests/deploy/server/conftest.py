"""A network that nobody trained, a gallery of coloured noise, and servers of them."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

import unseen
from unseen.data.transforms import resized_center
from unseen.deploy.embedding import embed_images
from unseen.deploy.listing import list_images
from unseen.deploy.model import Model
from unseen.deploy.server.app import application
from unseen.deploy.server.guard import LOOPBACK
from unseen.deploy.server.side import Side
from unseen.pictures.attention import overlay

THRESHOLDS = {
    "same": [
        {"threshold": 0.9, "false_accepts": 0.1, "false_rejects": 0.05},
        {"threshold": 0.99, "false_accepts": 0.009, "false_rejects": 0.25},
        {"threshold": 0.95, "false_accepts": 0.05, "false_rejects": 0.05},
    ],
    "known": [
        {"threshold": 0.98, "unknown_rejected": 0.9, "known_found": 0.8},
        {"threshold": 0.995, "unknown_rejected": 0.99, "known_found": 0.6},
    ],
}


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
    facts = {
        "bundle": f"{seed:02}" * 32,
        "data": "noise",
        "metrics": {"unseen": {"recall_at_1": 0.5}},
        "thresholds": THRESHOLDS,
    }
    return Model(embedder.requires_grad_(False).eval(), resized_center(32, 1.0), facts)


@pytest.fixture(scope="session")
def sides(coloured_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Side]:
    """Two bundles with their galleries of the same files."""
    found = []
    for name, model in (("first", make_model(1)), ("second", make_model(2, "last"))):
        folder = tmp_path_factory.mktemp("galleries") / name
        embed_images(model, list_images(coloured_tree), folder, batch_size=64, progress=lambda _: None)
        found.append(Side.open(name, model, folder))
    return found


@pytest.fixture(scope="session")
def make_app(sides: list[Side]) -> Callable[..., Any]:
    def made(count: int = 1, sides: list[Side] = sides, **options: Any) -> Any:
        chosen = {
            "k": 5,
            "false_accepts": 0.01,
            "unknown_accepts": 0.01,
            "draw": overlay,
            "hosts": LOOPBACK,
            "token": None,
        } | options
        return application(sides[:count], **chosen)

    return made


@pytest.fixture(scope="session")
def client(make_app: Callable[..., Any]) -> Iterator[TestClient]:
    """Of a server of two bundles."""
    with TestClient(make_app(2), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


class Growing:
    """A gallery of its own that changes while it is served."""

    def __init__(self, side: Side, images: Path) -> None:
        self.side = side
        self.images = images

    def add(self, label: str) -> bytes:
        """Embed one more image, as `unseen embed` does; gives its bytes."""
        content = encoded(noise(seed=99))
        (self.images / label).mkdir(parents=True)
        (self.images / label / "new.png").write_bytes(content)
        embed_images(
            self.side.model,
            list_images(self.images),
            self.side.gallery.folder,
            batch_size=8,
            progress=lambda _: None,
        )
        return content

    @staticmethod
    def wait(address: str, count: int, client: Any = httpx) -> None:
        """Until a server has noticed that there are so many images."""
        end = time.monotonic() + 60
        while (found := client.get(f"{address}about").json()["bundles"][0]["images"]) != count:
            assert time.monotonic() < end, found
            time.sleep(0.1)


@pytest.fixture
def growing(sides: list[Side], tmp_path: Path) -> Growing:
    shutil.copytree(sides[0].gallery.folder, tmp_path / "gallery")
    return Growing(Side.open("growing", sides[0].model, tmp_path / "gallery"), tmp_path / "images")


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
