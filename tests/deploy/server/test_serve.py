"""The command: what it opens, where it listens, and who may come in."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from unseen.deploy.bundle import load, save
from unseen.deploy.embedding import embed_images
from unseen.deploy.gallery import Gallery
from unseen.deploy.index.indexed import build_index
from unseen.deploy.listing import list_images, read_place
from unseen.deploy.model import Model
from unseen.deploy.server import serve as serving
from unseen.deploy.server.serve import address, open_sides, serve
from unseen.deploy.server.side import Query, Side
from unseen.pictures.attention import overlay

from .conftest import make_model

PARTS = {
    "backbone": {"model": "resnet10t", "options": None},
    "fusion": {"_target_": "unseen.nn.fusion.LastMap", "_partial_": True},
    "embedding": {
        "size": 16,
        "normalize": True,
        "layer_norm": False,
        "readout": "projection",
        "whitening": None,
        "frozen_batch_norm": False,
    },
    "preparation": {"_target_": "unseen.data.transforms.resized_center", "size": 32, "resize": 1.0},
}


@pytest.fixture(scope="module")
def folders(coloured_tree, tmp_path_factory):
    """A bundle and its gallery, and those of another."""
    root = tmp_path_factory.mktemp("served")
    for name, seed in (("one", 3), ("two", 4)):
        made = make_model(seed, "last")
        model = load(save(Model(made.embedder, made.preparation, {}), PARTS, root / name / "bundle"))
        gallery = root / name / "gallery"
        embed_images(model, list_images(coloured_tree), gallery, batch_size=64, progress=lambda _: None)
    return root


def test_two_bundles_of_one_name_are_told_apart(folders):
    bundles = [str(folders / name / "bundle") for name in ("one", "two")]
    galleries = [str(folders / name / "gallery") for name in ("one", "two")]
    assert [side.name for side in open_sides(bundles, galleries, "cpu")] == ["one/bundle", "two/bundle"]
    [same, again] = open_sides(bundles[:1] * 2, galleries[:1] * 2, "cpu")
    assert (same.name, again.name) == ("bundle (1)", "bundle (2)")


def test_what_does_not_belong_together_is_refused(folders):
    one, two = (str(folders / name / "bundle") for name in ("one", "two"))
    gallery = str(folders / "one" / "gallery")
    with pytest.raises(ValueError, match="was embedded by bundle"):
        open_sides([two], [gallery], "cpu")
    with pytest.raises(ValueError, match="2 bundles and 1 galleries"):
        open_sides([one, two], [gallery], "cpu")
    with pytest.raises(ValueError, match="no bundle"):
        open_sides([gallery], [gallery], "cpu")
    with pytest.raises(ValueError, match=r"there is no gallery\.json"):
        open_sides([one], [one], "cpu")


@pytest.fixture
def served(sides, monkeypatch):
    """`served(**options)` → what uvicorn would have run."""
    run = []
    monkeypatch.setattr(serving.uvicorn.Server, "run", lambda server, sockets: run.append((server, sockets)))

    def one(**options):
        chosen = {
            "host": "127.0.0.1",
            "port": 0,
            "token": None,
            "k": 5,
            "false_accepts": 0.01,
            "unknown_accepts": 0.01,
            "draw": overlay,
        } | options
        serve(sides[:1], **chosen)
        [(server, [listening])] = run
        return server.config.app, listening

    return one


def test_this_machine_alone_needs_no_token(served, capsys):
    guard, _ = served()
    assert guard.token is None
    assert "localhost" in guard.hosts
    assert capsys.readouterr().out.startswith("Search by image: http://127.0.0.1:")


def test_beyond_this_machine_a_token_is_made_and_printed(served, capsys):
    guard, _ = served(host="0.0.0.0")
    assert len(guard.token) >= 32
    assert guard.hosts is None
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.rstrip().endswith(f"/?token={guard.token}")


def test_a_token_that_can_be_guessed_is_refused(served):
    with pytest.raises(ValueError, match="6 letters can be guessed"):
        served(token="secret")


@pytest.mark.parametrize("token", ["schlüsselwort", "пароль пароль", "tab\tin the middle", " spaces around "])
def test_a_token_that_cannot_be_sent_is_refused(served, token):
    with pytest.raises(ValueError, match=r"^token: .* Choose one of the letters A to Z") as refused:
        served(token=token)
    assert token not in str(refused.value)


def test_a_token_of_any_other_letters_lets_in(served):
    token = "".join(map(chr, range(ord(" ") + 1, ord("~") + 1))) + " x"
    guard, _ = served(token=token)
    with TestClient(guard, base_url="http://127.0.0.1:8000") as client:
        assert client.get("/about", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/about").status_code == 401
        assert client.get("/", params={"token": token}).status_code == 200
        assert client.get("/about").status_code == 200


def test_a_port_that_is_taken_is_said(served):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValueError, match="nothing can listen there"),
    ):
        served(port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="port=70000"):
        served(port=70000)


def test_addresses_can_be_opened():
    assert address("127.0.0.1", 8000, None) == "http://127.0.0.1:8000/"
    assert address("::1", 80, "a b&c/d e f g") == "http://[::1]:80/?token=a%20b%26c%2Fd%20e%20f%20g"
    assert socket.gethostname() in address("0.0.0.0", 1, None)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(folders):
    words = [f"bundle={folders / 'one' / 'bundle'}", f"gallery={folders / 'one' / 'gallery'}", "port=0"]
    command = [sys.executable, "-m", "unseen", "demo", *words, "device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("Search by image: http://127.0.0.1:"), process.stderr.read()
        url = line.split()[-1]
        assert httpx.get(f"{url}about", timeout=60).json()["bundles"][0]["images"] == 64
        assert httpx.post(f"{url}search?id=0", timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_without_its_libraries_the_command_names_the_remedy():
    code = """
import sys
sys.modules["uvicorn"] = None
sys.argv = ["unseen demo", "bundle=x", "gallery=y"]
from unseen.apps.demo import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "pip install 'unseen-dml[serve]'" in done.stderr


def test_a_gallery_with_an_index_is_searched_by_it(sides, tmp_path):
    pytest.importorskip("faiss")
    shutil.copytree(sides[0].gallery.folder, tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    kind = {"_target_": "unseen.deploy.index.faiss_kinds.Graph", "links": 8, "building_effort": 40}
    build_index(gallery, kind, recall=1.0, k=5)
    indexed = Side("indexed", sides[0].model, gallery)
    images = torch.stack([sides[0].model.prepare(read_place(place)) for place in gallery.column("path")[:6]])
    queries = [Query(image, 5) for image in images]
    for mine, exact in zip(indexed.answer(queries), sides[0].answer(queries), strict=True):
        assert mine.ids.tolist() == exact.ids.tolist()
    (tmp_path / "gallery" / "index" / "index.faiss").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be used"):
        Side("broken", sides[0].model, gallery)
