"""An index finds what it says it finds, decides exactly, and knows of what came and went."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from unseen.deploy.gallery import Gallery
from unseen.deploy.index.indexed import IndexedGallery, build_index, remove_index, searchable
from unseen.files import refusing_lock

pytest.importorskip("faiss")
GRAPH = {"_target_": "unseen.deploy.index.faiss_kinds.Graph", "links": 16, "building_effort": 40}
COMPRESSED = {
    "_target_": "unseen.deploy.index.faiss_kinds.Compressed",
    "dimensions_per_byte": 4,
    "candidates": 20,
}
QDRANT = {"_target_": "unseen.deploy.index.qdrant.Qdrant", "url": None, "collection": "tests"}
ALL = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(GRAPH, id="graph"),
        pytest.param(COMPRESSED, id="compressed"),
        pytest.param(QDRANT, id="qdrant", marks=pytest.mark.slow),
    ],
)


def clustered(count, seed, size=32):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(40, size))
    values = centres[generator.integers(0, 40, count)] + 0.4 * generator.normal(size=(count, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def add(gallery, count, seed, label="old"):
    names = [f"{seed}-{row}" for row in range(count)]
    gallery.append(
        clustered(count, seed), {"path": names, "label": [label] * count, "modified": ["1"] * count}
    )


@pytest.fixture
def gallery(tmp_path, request):
    made = Gallery.create(tmp_path / "gallery", "bundle", 32)
    # Qdrant's mode without a server compares with each in Python.
    without_server = (
        getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind") == QDRANT
    )
    add(made, 600 if without_server else 3000, seed=0)
    return made


def share_found(found, wanted):
    hits = [len(set(one) & set(other)) for one, other in zip(found.ids, wanted.ids, strict=True)]
    return np.mean(hits) / wanted.ids.shape[1]


@ALL
def test_it_finds_on_new_queries_what_was_promised_and_its_similarities_are_exact(gallery, kind):
    measured = build_index(gallery, kind, recall=0.9, k=10)
    assert measured.recall >= 0.9
    assert (measured.k, measured.sample) == (10, 500)
    assert measured.bytes > 0
    queries = torch.from_numpy(clustered(200, seed=1))
    indexed = searchable(Gallery.open(gallery.folder))
    assert isinstance(indexed, IndexedGallery)
    found, wanted = indexed.search(queries, 10), gallery.search(queries, 10)
    assert share_found(found, wanted) > 0.85
    for query, ids, similarities in zip(queries.numpy(), *found, strict=True):
        cosines = gallery.embeddings[ids].astype(np.float64) @ query
        np.testing.assert_allclose(similarities, cosines, atol=1e-6)
        assert (np.diff(similarities) <= 0).all()


@ALL
def test_images_come_and_go_without_a_new_index(gallery, kind):
    build_index(gallery, kind, recall=0.9, k=10)
    first_new = len(gallery)
    queries = torch.from_numpy(clustered(50, seed=2))
    first = searchable(gallery).search(queries, 3)
    gone = np.unique(first.ids[:, 0]).tolist()
    later = Gallery.open(gallery.folder)
    later.remove(gone)
    later.append(queries.numpy()[:5], {"path": list("abcde"), "label": ["new"] * 5, "modified": ["1"] * 5})
    later.compact()
    found = searchable(later).search(queries, 3)
    new = list(range(first_new, first_new + 5))
    assert found.ids[:5, 0].tolist() == new
    np.testing.assert_allclose(found.similarities[:5, 0], 1, atol=1e-6)
    assert not set(found.ids.flatten().tolist()) & set(gone)
    only = searchable(later).search(queries, 10, where={"label": "new"})
    assert sorted(only.ids[0].tolist()) == [-1] * 5 + new


def test_more_is_asked_for_than_there_is(tmp_path):
    small = Gallery.create(tmp_path / "small", "bundle", 32)
    add(small, 3, seed=5)
    build_index(small, GRAPH, recall=1.0, k=10)
    found = searchable(small).search(torch.from_numpy(clustered(2, seed=6)), 5)
    assert sorted(found.ids[0].tolist()) == [-1, -1, 0, 1, 2]
    small.remove([0, 1, 2])
    assert searchable(small).search(torch.from_numpy(clustered(2, seed=6)), 5).ids.max() == -1


def test_an_index_that_finds_too_little_is_refused_and_the_former_one_stays(gallery):
    build_index(gallery, GRAPH, recall=0.9, k=10)
    before = (gallery.folder / "index" / "index.json").read_text()
    rough = {**COMPRESSED, "dimensions_per_byte": 32, "candidates": 1}
    with pytest.raises(ValueError, match=r"of the 10 nearest where 0.99 is wanted, however hard it tries"):
        build_index(gallery, rough, recall=0.99, k=10)
    assert (gallery.folder / "index" / "index.json").read_text() == before
    assert not list(gallery.folder.glob(".index.[0-9]*"))
    remove_index(gallery)
    assert searchable(gallery) is gallery


def test_what_is_no_index_is_refused(gallery, tmp_path):
    with pytest.raises(ValueError, match="recall=0: wanted a share above 0"):
        build_index(gallery, GRAPH, recall=0, k=10)
    with pytest.raises(ValueError, match="holds 0 images: nothing to index"):
        build_index(Gallery.create(tmp_path / "empty", "bundle", 32), GRAPH, recall=0.9, k=10)
    build_index(gallery, GRAPH, recall=0.9, k=10)
    description = gallery.folder / "index" / "index.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "kind": {"_target_": "os.system", "command": "true"}}))
    with pytest.raises(ValueError, match=r"index of gallery .* cannot be used .*'os.system'"):
        searchable(gallery)
    for broken in (
        "[]",
        "null",
        json.dumps({**content, "kind": "x"}),
        json.dumps({**content, "known": None}),
        json.dumps({**content, "measured": {**content["measured"], "effort": 0}}),
        json.dumps({**content, "measured": {**content["measured"], "k": -1}}),
    ):
        description.write_text(broken)
        with pytest.raises(ValueError, match=r"cannot be used .* Make it again: unseen index"):
            searchable(gallery)
    description.write_text(json.dumps(content))
    (description.parent / "index.faiss").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be used .* Make it again: unseen index"):
        searchable(gallery)


def test_a_server_has_the_former_collection_until_the_new_one_is_whole(gallery, tmp_path, monkeypatch):
    """Against Qdrant's mode without a server: one store for all builds, as a server is."""
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    monkeypatch.setattr("unseen.deploy.index.qdrant.Qdrant._client", lambda kind, folder, is_own: client)
    client.create_collection("tests.other", vectors_config={})  # of somebody else

    def names():
        return {one.name for one in client.get_collections().collections} - {"tests.other"}

    build_index(gallery, QDRANT, recall=0.9, k=10)
    [first] = names()
    add(gallery, 200, seed=3)
    queries = torch.from_numpy(clustered(20, seed=3))
    with monkeypatch.context() as failing:
        sent = []
        upsert = client.upsert

        def breaks(*arguments, **options):
            sent.append(arguments)
            if len(sent) > 1:
                raise ConnectionError("gone")
            return upsert(*arguments, **options)

        failing.setattr(client, "upsert", breaks)
        with pytest.raises(ConnectionError, match="gone"):
            build_index(gallery, QDRANT, recall=0.9, k=10)
    assert client.count("tests").count == 3000
    found = searchable(gallery).search(queries, 10)
    assert share_found(found, gallery.search(queries, 10)) == 1
    build_index(gallery, QDRANT, recall=0.9, k=10)
    assert client.count("tests").count == 3200
    [second] = names()
    assert second != first
    assert client.collection_exists("tests.other")


@pytest.fixture
def refusing_server():
    """Its address, and the keys of the requests that it refused."""
    keys = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            keys.append(self.headers.get("api-key"))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()


@pytest.mark.filterwarnings("ignore:Api key is used", "ignore:Failed to obtain server version")
def test_who_builds_an_index_sends_the_key_to_the_server_that_he_names(gallery, monkeypatch, refusing_server):
    pytest.importorskip("qdrant_client")
    url, keys = refusing_server
    monkeypatch.setenv("QDRANT_API_KEY", "mine")
    with pytest.raises(ConnectionError, match=r"401.* does it want a key \(QDRANT_API_KEY\)"):
        build_index(gallery, {**QDRANT, "url": url}, recall=0.9, k=10)
    assert set(keys) == {"mine"}


@pytest.mark.parametrize(
    ("named", "sent"), [("", None), ("{url}.evil.example", None), ("{url}", "mine"), ("{url}/", "mine")]
)
@pytest.mark.filterwarnings("ignore:Api key is used", "ignore:Failed to obtain server version")
def test_a_gallery_of_somebody_else_gets_no_key(gallery, monkeypatch, refusing_server, named, sent):
    pytest.importorskip("qdrant_client")
    url, keys = refusing_server
    build_index(gallery, GRAPH, recall=0.9, k=10)
    description = gallery.folder / "index" / "index.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "kind": {**QDRANT, "url": url}}))
    monkeypatch.setenv("QDRANT_API_KEY", "mine")
    monkeypatch.setenv("QDRANT_URL", named.format(url=url))
    remedy = "does it want a key" if sent else f"set QDRANT_URL={url}, so that QDRANT_API_KEY is sent"
    with pytest.raises(ValueError, match=remedy):
        searchable(gallery)
    assert set(keys) == {sent}


@ALL
def test_what_was_removed_is_not_in_the_way_of_what_was_not(gallery, kind):
    build_index(gallery, kind, recall=0.95, k=10)
    queries = torch.from_numpy(clustered(20, seed=3))
    near = gallery.search(queries, 8)
    gallery.remove(sorted({int(id) for id in near.ids.ravel()}))
    found = searchable(gallery).search(queries, 10)
    assert (found.ids >= 0).all()
    assert share_found(found, gallery.search(queries, 10)) > 0.9


def test_what_is_left_of_many_is_found_as_well_as_what_was_indexed(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6100, 32)).astype(np.float32)
    gallery = Gallery.create(tmp_path / "gallery", "bundle", 32)
    names = [str(row) for row in range(6000)]
    gallery.append(vectors[:6000], {"path": names, "label": names, "modified": names})
    measured = build_index(gallery, COMPRESSED, recall=0.95, k=10)
    gallery.remove(np.random.default_rng(1).permutation(6000)[:4800].tolist())
    indexed, queries = searchable(gallery), torch.from_numpy(vectors[6000:])
    assert isinstance(indexed, IndexedGallery)
    for k in (1, 10):
        found = indexed.search(queries, k)
        assert share_found(found, gallery.search(queries, k)) > measured.recall - 0.01


@pytest.mark.parametrize("kind", [GRAPH, COMPRESSED])
def test_who_asks_for_fewer_than_it_was_measured_for_gets_the_first_of_them(gallery, kind):
    build_index(gallery, kind, recall=0.9, k=50)
    indexed, queries = searchable(gallery), torch.from_numpy(clustered(200, seed=3))
    first = indexed.search(queries, 50).ids[:, :5]
    np.testing.assert_array_equal(indexed.search(queries, 5).ids, first)


def test_two_galleries_of_one_server_are_not_mixed_up(gallery, tmp_path, monkeypatch):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    monkeypatch.setattr("unseen.deploy.index.qdrant.Qdrant._client", lambda kind, folder, is_own: client)
    build_index(gallery, QDRANT, recall=0.9, k=10)
    other = Gallery.create(tmp_path / "other", "bundle", 32)
    add(other, 500, seed=5)
    build_index(other, QDRANT, recall=0.9, k=10)
    with pytest.raises(ValueError, match="another gallery was indexed under the same name"):
        searchable(gallery)
    queries = torch.from_numpy(clustered(20, seed=3))
    assert share_found(searchable(other).search(queries, 10), other.search(queries, 10)) == 1


@pytest.mark.parametrize("kind", [GRAPH, COMPRESSED])
def test_as_many_are_found_as_are_asked_for(gallery, kind):
    measured = build_index(gallery, kind, recall=0.95, k=10)
    queries = torch.from_numpy(clustered(20, seed=3))
    for k in (100, 500):
        found = searchable(gallery).search(queries, k)
        assert (found.ids >= 0).all()
        assert share_found(found, gallery.search(queries, k)) > measured.recall - 0.1


def test_vectors_of_any_length_are_compared_by_cosine(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", "bundle", 32)
    random = np.random.default_rng(0)
    vectors = clustered(2000, seed=0) * random.uniform(0.1, 9, (2000, 1)).astype(np.float32)
    names = [str(row) for row in range(2000)]
    gallery.append(vectors, {"path": names, "label": names, "modified": names})
    np.testing.assert_allclose(np.linalg.norm(gallery.embeddings, axis=1), 1, atol=1e-5)
    assert build_index(gallery, GRAPH, recall=0.95, k=10).recall >= 0.95
    queries = torch.from_numpy(7 * clustered(20, seed=3))
    found, wanted = searchable(gallery).search(queries, 10), gallery.search(queries, 10)
    np.testing.assert_allclose(found.similarities[:, 0], wanted.similarities[:, 0], atol=1e-6)


def test_an_index_follows_its_gallery_as_it_changes(gallery):
    build_index(gallery, GRAPH, recall=0.95, k=10)
    indexed = searchable(gallery)
    queries = torch.from_numpy(clustered(20, seed=3))
    add(gallery, 50, seed=3)
    assert share_found(indexed.search(queries, 10), gallery.search(queries, 10)) > 0.9
    gallery.remove(gallery.ids[-40:].tolist())
    assert share_found(indexed.search(queries, 10), gallery.search(queries, 10)) > 0.9


def test_two_processes_do_not_index_one_gallery_and_what_a_dead_one_left_goes(gallery):
    (gallery.folder / ".index.4242").mkdir()
    with (
        refusing_lock(gallery.folder / ".index.lock", "held"),
        pytest.raises(ValueError, match="Another process indexes gallery"),
    ):
        build_index(gallery, GRAPH, recall=0.9, k=10)
    build_index(gallery, GRAPH, recall=0.9, k=10)
    assert [path.name for path in gallery.folder.glob(".index.*")] == [".index.lock"]


@pytest.mark.slow
def test_a_store_without_a_server_is_read_while_it_is_replaced(tmp_path):
    pytest.importorskip("qdrant_client")
    gallery = Gallery.create(tmp_path / "gallery", "bundle", 32)
    add(gallery, 300, seed=0)
    build_index(gallery, QDRANT, recall=0.9, k=10)
    before = searchable(gallery)
    add(gallery, 100, seed=3)
    build_index(gallery, QDRANT, recall=0.9, k=10)
    queries = torch.from_numpy(clustered(20, seed=3))
    wanted = gallery.search(queries, 10)
    for indexed in (before, searchable(gallery)):
        assert share_found(indexed.search(queries, 10), wanted) == 1
