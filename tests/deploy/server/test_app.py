"""The routes: what they answer, and what they say when they do not."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from unseen.deploy.server.uploads import MOST_BYTES

from .conftest import encoded, noise


@pytest.fixture(scope="module")
def an_image(coloured_tree):
    return (coloured_tree / "class 3" / "2.png").read_bytes()


def id_of(side, name):
    [row] = np.flatnonzero([str(path).endswith(name) for path in side.gallery.column("path")])
    return int(side.gallery.ids[row])


def test_an_image_is_embedded_as_the_model_does(client, sides, an_image):
    wanted = sides[1].model.embed([Image.open(io.BytesIO(an_image))])[0]
    answer = client.post("/embed?bundle=1", content=an_image).json()
    assert answer["bundle"] == sides[1].gallery.bundle
    torch.testing.assert_close(torch.tensor(answer["embedding"]), wanted, rtol=0, atol=1e-6)


def test_an_image_finds_itself_and_what_the_gallery_finds(client, sides, an_image):
    answer = client.post("/search?k=7", content=an_image).json()
    found = sides[0].gallery.search(sides[0].model.embed([Image.open(io.BytesIO(an_image))]), 7)
    assert [one["id"] for one in answer["neighbours"]] == found.ids[0].tolist()
    values = [one["similarity"] for one in answer["neighbours"]]
    np.testing.assert_allclose(values, found.similarities[0], atol=1e-5)
    assert answer["neighbours"][0]["name"] == "2.png"
    assert answer["neighbours"][0]["label"] == "class 3"
    assert answer["query"] is None


def test_an_image_of_the_gallery_is_a_query_and_not_its_own_neighbour(client, sides):
    id = id_of(sides[0], "class 5/1.png")
    answer = client.post(f"/search?id={id}&k=9").json()
    assert answer["query"]["label"] == "class 5"
    assert len(answer["neighbours"]) == 9
    assert id not in [one["id"] for one in answer["neighbours"]]
    # To the other bundle it is the same file.
    other = client.post(f"/search?bundle=1&id={id}&of=0&k=9").json()
    assert other["query"]["id"] == id
    assert answer["query"]["file"] not in [one["file"] for one in other["neighbours"]]
    assert len(other["neighbours"]) == 9


def test_a_class_may_be_asked_for(client, an_image):
    found = client.post("/search?k=20&label=class 6", content=an_image).json()["neighbours"]
    assert [one["label"] for one in found] == ["class 6"] * 8
    values = [one["similarity"] for one in found]
    assert values == sorted(values, reverse=True)


def test_answers_say_what_is_similar_enough(client, sides, an_image):
    answer = client.post("/search?k=64", content=an_image).json()
    # Of those that err in one of a hundred or less, the lowest.
    assert answer["thresholds"] == {
        "same": {"threshold": 0.99, "false_accepts": 0.009, "false_rejects": 0.25},
        "known": {"threshold": 0.995, "unknown_rejected": 0.99, "known_found": 0.6},
    }
    assert [one["is_same"] for one in answer["neighbours"]] == [
        one["similarity"] >= 0.99 for one in answer["neighbours"]
    ]
    assert {one["is_same"] for one in answer["neighbours"]} == {True, False}
    assert answer["is_known"] is True
    strange = client.post("/search", content=encoded(noise(seed=5))).json()
    assert strange["is_known"] is (strange["neighbours"][0]["similarity"] >= 0.995) is False
    # Of one class alone the nearest does not say whether the image is known.
    assert client.post("/search?label=class 6", content=an_image).json()["is_known"] is None


def test_without_thresholds_nothing_is_judged(make_app, sides, an_image, monkeypatch):
    monkeypatch.delitem(sides[0].model.facts, "thresholds")
    with TestClient(make_app(), base_url="http://127.0.0.1") as client:
        answer = client.post("/search", content=an_image).json()
    assert (answer["thresholds"], answer["is_known"]) == (None, None)
    assert {one["is_same"] for one in answer["neighbours"]} == {None}


def test_an_error_rate_without_a_threshold_is_refused_at_once(make_app):
    with pytest.raises(ValueError, match=r"false_accepts=0\.001: thresholds were calibrated for 0\.1, "):
        make_app(false_accepts=0.001)
    with pytest.raises(ValueError, match=r"unknown_accepts=0\.005: thresholds were calibrated for 0\.2, "):
        make_app(unknown_accepts=0.005)


def test_unknown_images_have_a_share_of_their_own(make_app, an_image):
    with TestClient(make_app(unknown_accepts=0.1), base_url="http://127.0.0.1") as client:
        thresholds = client.post("/search", content=an_image).json()["thresholds"]
    assert (thresholds["same"]["threshold"], thresholds["known"]["threshold"]) == (0.99, 0.98)


def test_attention_is_drawn_for_each_tap(client, sides, an_image):
    taps = client.post("/attention", content=an_image).json()["taps"]
    assert [one["name"] for one in taps] == sides[0].taps
    for tap in taps:
        png = Image.open(io.BytesIO(base64.b64decode(tap["overlay"].removeprefix("data:image/png;base64,"))))
        assert (png.format, png.size) == ("PNG", (32, 32))
        assert tap["peak"] >= 1
        assert (tap["height"], tap["width"]) <= (32, 32)
    # The second bundle pools without attention.
    assert client.post("/attention?bundle=1", content=an_image).json() == {"taps": []}


def test_a_thumbnail_is_a_small_jpeg(client, sides):
    answer = client.get(f"/image/{id_of(sides[0], 'class 0/0.png')}")
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == ("JPEG", (40, 40))


def test_large_images_become_small(client, sides, coloured_tree, tmp_path, monkeypatch):
    large = tmp_path / "large.png"
    large.write_bytes(encoded(noise(600, 900)))
    gallery = sides[0].gallery
    row = gallery.row(0)
    monkeypatch.setattr(gallery, "row", lambda id: {**row, "path": str(large)})
    assert Image.open(io.BytesIO(client.get("/image/0").content)).size == (256, 171)
    large.unlink()
    answer = client.get("/image/0")
    assert answer.status_code == 404
    assert str(tmp_path) not in answer.text


def test_examples_are_of_many_classes_and_change_with_the_seed(client):
    first = client.get("/examples?count=8").json()["images"]
    assert len({one["label"] for one in first}) == 8
    assert client.get("/examples?count=8").json()["images"] == first
    assert client.get("/examples?count=8&seed=1").json()["images"] != first
    some = client.get("/examples?label=class 2").json()["images"]
    assert [one["label"] for one in some] == ["class 2"] * 8


def test_it_says_what_it_serves(client, sides):
    about = client.get("/about").json()
    assert [one["name"] for one in about["bundles"]] == ["first", "second"]
    first = about["bundles"][0]
    assert first["images"] == 64
    assert first["classes"][0] == {"label": "class 0", "images": 8}
    assert first["facts"]["metrics"]["unseen"]["recall_at_1"] == 0.5
    assert len(first["taps"]) > 1
    assert about["bundles"][1]["taps"] == []
    assert about["k"] == 5


def test_no_answer_says_where_files_lie(client, coloured_tree, an_image):
    for answer in (
        client.get("/about"),
        client.get("/examples"),
        client.post("/search", content=an_image),
        client.get("/openapi.json"),
    ):
        assert answer.status_code == 200
        assert coloured_tree.name not in answer.text


def check(schema, value, schemas):
    """What JSON Schema says of these few words."""
    if "$ref" in schema:
        return check(schemas[schema["$ref"].rpartition("/")[2]], value, schemas)
    if "oneOf" in schema:
        kind = {"type": "null"} if value is None else schema["oneOf"][0]
        return check(kind, value, schemas)
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    assert value is None if schema["type"] == "null" else isinstance(value, kinds[schema["type"]])
    if schema["type"] == "object" and "properties" in schema:
        assert set(value) == set(schema["properties"]) == set(schema["required"])
        for name, part in schema["properties"].items():
            check(part, value[name], schemas)
    for item in value if schema["type"] == "array" else ():
        check(schema["items"], item, schemas)
    return None


def test_what_openapi_says_is_so(client, an_image):
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    assert set(described["paths"]) == {
        "/about",
        "/examples",
        "/image/{id}",
        "/embed",
        "/search",
        "/attention",
    }
    for path, methods in described["paths"].items():
        [(method, operation)] = methods.items()
        content = {"content": an_image} if method == "post" else {}
        answer = client.request(method, path.replace("{id}", "0"), **content)
        assert answer.status_code == 200, path
        [(kind, about)] = operation["responses"]["200"]["content"].items()
        assert answer.headers["content-type"].startswith(kind)
        if "schema" in about:
            check(about["schema"], answer.json(), schemas)
        for parameter in operation["parameters"]:
            schema = parameter["schema"]
            if parameter["in"] == "query" and schema["type"] == "integer":
                wrong = client.request(method, path, params={parameter["name"]: "x"}, **content)
                assert wrong.status_code in (404, 422), (path, parameter)
    refused = client.get("/nothing")
    check(schemas["Error"], refused.json(), schemas)
    by_id = client.post("/search?id=0").json()
    check({"$ref": "#/components/schemas/Neighbours"}, by_id, schemas)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/search?k=0", 422),
        ("/search?k=101", 422),
        ("/search?k=5.5", 422),
        ("/search?k=-1", 422),
        ("/search?k=٣", 422),
        ("/search?k=" + "9" * 5000, 422),
        ("/search?bundle=2", 422),
        ("/search?label=class 99", 422),
        ("/search?id=99999", 404),
        ("/search?id=999999999999999999", 404),
        ("/search?id=0&of=7", 422),
        ("/search?id=../../etc/passwd", 422),
        ("/embed?bundle=x", 422),
        ("/attention?id=64", 404),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_sentence(client, an_image, address, status):
    answer = client.post(address, content=an_image)
    assert answer.status_code == status
    [sentence] = answer.json().values()
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0


@pytest.mark.parametrize(
    "path",
    [
        "/image/../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image//etc/passwd",
        "/image/-1",
        "/image/0%00.png",
        "/image/1e3",
        "/..%2f..%2fapp.py",
        "/../app.py",
        "/page/index.html",
        "/%2e%2e/serve.py",
        "/page.js/../../app.py",
        "/index.html",
        "/image/99999999999999999999999999",
        "/image/" + "9" * 5000,
    ],
)
def test_no_path_reaches_the_file_system(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize(("method", "path"), [("GET", "/search"), ("PUT", "/embed"), ("POST", "/about")])
def test_another_method_is_refused(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert "method" in answer.json()["error"]


@pytest.mark.slow
def test_uploads_are_limited(client):
    assert client.post("/search").status_code == 422
    too_large = client.post("/search", content=b"x" * (MOST_BYTES + 1))
    assert too_large.status_code == 413
    assert too_large.json()["error"] == "The image is too large: at most 20 MB are taken."

    def endless():
        for _ in range(10_000):
            yield b"x" * 100_000

    assert client.post("/search", content=endless()).status_code == 413
    announced = client.post("/search", content=b"x", headers={"content-length": str(10**30)})
    assert announced.status_code == 413
    assert client.post("/search", content=b"PK\x03\x04 no image").status_code == 415


def test_names_and_types_that_are_claimed_do_not_matter(client, an_image):
    headers = {"content-type": "text/html; charset=../../x", "content-disposition": "filename=../../x.php"}
    answer = client.post("/search", content=an_image, headers=headers)
    assert answer.status_code == 200


def test_a_failure_is_said_without_its_details(make_app, sides, an_image, monkeypatch):
    monkeypatch.setattr(type(sides[0]), "answer", lambda self, queries: 1 / 0)
    with TestClient(make_app(), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.post("/embed", content=an_image)
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_served_strictly(client):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "//" not in answer.text.replace("http://www.w3.org", "").replace("// ", "")


def test_answers_are_json_without_nan(client, an_image):
    json.loads(client.post("/search", content=an_image).text, parse_constant=pytest.fail)


@pytest.mark.parametrize("k", [0, 101])
def test_a_number_of_neighbours_out_of_range_is_refused_at_once(make_app, k):
    with pytest.raises(ValueError, match=f"k={k}"):
        make_app(k=k)
