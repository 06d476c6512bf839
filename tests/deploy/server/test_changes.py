"""A gallery changes on disk while it is served."""

import shutil
import threading
import time

import pytest
from starlette.testclient import TestClient

from unseen.deploy.gallery import Gallery
from unseen.deploy.index.indexed import IndexedGallery, build_index

from .conftest import encoded, noise


@pytest.fixture
def client(make_app, growing):
    with TestClient(make_app(sides=[growing.side]), base_url="http://127.0.0.1:8000") as client:
        yield client


def test_images_that_come_are_found_and_those_that_go_are_not(client, growing):
    before = client.get("/about").json()["bundles"][0]["version"]
    content = growing.add("a new class")
    growing.wait("/", 65, client)
    answer = client.post("/search?k=1", content=content).json()
    [found] = answer["neighbours"]
    assert (found["label"], found["similarity"]) == ("a new class", pytest.approx(1, abs=1e-5))
    assert answer["version"] != before
    assert client.get(f"/image/{found['id']}").status_code == 200
    assert client.post("/search?label=a new class", content=content).status_code == 200
    Gallery.open(growing.side.gallery.folder).remove([found["id"], 0])
    growing.wait("/", 63, client)
    others = client.post("/search?k=64", content=content).json()["neighbours"]
    assert len(others) == 63
    assert not {0, found["id"]} & {one["id"] for one in others}
    gone = client.post(f"/search?id={found['id']}")
    assert (gone.status_code, gone.json()["error"]) == (
        404,
        "There is no image with this id in the gallery.",
    )


@pytest.mark.slow
def test_no_request_meets_a_gallery_that_is_half_new(client, growing):
    """While images come and go every answer is of one state: its ids are known, and k of them."""
    gallery = Gallery.open(growing.side.gallery.folder)
    versions, stop = set(), threading.Event()

    def change():
        while not stop.is_set():
            vectors = gallery.embeddings[:3].copy()
            columns = {"path": gallery.column("path")[:3].tolist(), "label": ["x"] * 3, "modified": ["1"] * 3}
            gallery.append(vectors, columns, replaced=gallery.ids[:3].tolist())
            gallery.compact()
            time.sleep(0.3)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        end = time.monotonic() + 60
        while len(versions) < 4 and time.monotonic() < end:
            answer = client.post("/search?k=64", content=encoded(noise()))
            assert answer.status_code == 200
            assert len({one["id"] for one in answer.json()["neighbours"]}) == 64
            versions.add(answer.json()["version"])
    finally:
        stop.set()
        changing.join()
    assert len(versions) >= 4


@pytest.mark.slow
def test_a_gallery_that_breaks_is_said_once_and_its_former_state_is_searched(client, growing, capsys):
    description = growing.side.gallery.folder / "gallery.json"
    whole = description.read_text()
    description.write_text("{")
    end = time.monotonic() + 30
    said = ""
    while "Its former state is searched" not in said and time.monotonic() < end:
        time.sleep(0.1)
        said += capsys.readouterr().err
    time.sleep(2.5)
    said += capsys.readouterr().err
    assert said.count("is not the description of a gallery") == 1
    assert len(client.post("/search?k=64", content=encoded(noise())).json()["neighbours"]) == 64
    description.write_text(whole)
    growing.add("later")
    growing.wait("/", 65, client)


@pytest.mark.parametrize("is_of_a_file", [False, True])
def test_an_opening_that_fails_for_a_while_is_said_once_and_tried_again(
    client, growing, capsys, monkeypatch, is_of_a_file
):
    """Memory may be full, and a disk of the network away, while the gallery itself is well."""
    opened, tries = Gallery.open, []

    def fails_twice(folder):
        tries.append(folder)
        if len(tries) > 2:
            return opened(folder)
        if is_of_a_file:
            raise ValueError("a part cannot be read.") from OSError(5, "Input/output error")
        raise RuntimeError("out of memory")

    opened(growing.side.gallery.folder).remove([1])
    monkeypatch.setattr(Gallery, "open", fails_twice)
    monkeypatch.setattr("unseen.deploy.server.app.LOOK_EVERY", 0.05)
    growing.wait("/", 63, client)
    assert client.get("/image/1").status_code == 404
    said = capsys.readouterr().err
    assert said.count("a part cannot be read." if is_of_a_file else "RuntimeError: out of memory") == 1
    assert "tried again" in said


def test_another_index_is_noticed(growing):
    pytest.importorskip("faiss")
    side = growing.side
    assert not side.has_changed
    kind = {"_target_": "unseen.deploy.index.faiss_kinds.Graph", "links": 8, "building_effort": 40}
    build_index(side.gallery, kind, recall=1.0, k=5)
    assert side.has_changed
    again = side.reopened()
    assert isinstance(again._searched, IndexedGallery)
    assert not again.has_changed
    shutil.rmtree(side.gallery.folder / "index")
    assert again.has_changed
