"""Many at once, through a real server: each gets its own answer, the patient and the rude alike."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from .conftest import encoded, noise

CLIENTS = 50


@pytest.fixture(scope="module")
def address(make_app, listen):
    return listen(make_app())


@pytest.mark.slow
def test_fifty_clients_get_their_own_answers_in_few_batches(make_app, listen, sides, monkeypatch):
    sizes = []
    answer = type(sides[0]).answer

    def counted(self, queries):
        sizes.append(len(queries))
        return answer(self, queries)

    monkeypatch.setattr(type(sides[0]), "answer", counted)
    address = listen(make_app())
    labels = sides[0].gallery.column("label")
    ids = sides[0].gallery.ids
    bodies = [encoded(noise(seed=seed)) for seed in range(CLIENTS)]
    wanted = [httpx.post(f"{address}/embed", content=body, timeout=60).json() for body in bodies[:5]]
    sizes.clear()

    def one_client(number):
        start.wait()
        with httpx.Client(base_url=address, timeout=120) as client:
            embedded = client.post("/embed", content=bodies[number])
            row = number % len(ids)
            found = client.post("/search", params={"id": int(ids[row]), "k": 3 + number % 4})
            filtered = client.post("/search", params={"label": labels[row]}, content=bodies[number])
        return embedded, found, filtered

    start = threading.Barrier(CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one_client, range(CLIENTS)))
    for number, (embedded, found, filtered) in enumerate(answers):
        assert [one.status_code for one in (embedded, found, filtered)] == [200] * 3
        row = number % len(ids)
        assert found.json()["query"]["id"] == ids[row]
        assert len(found.json()["neighbours"]) == 3 + number % 4
        assert {one["label"] for one in filtered.json()["neighbours"]} == {labels[row]}
        if number < len(wanted):
            assert embedded.json()["embedding"] == pytest.approx(wanted[number]["embedding"], abs=1e-5)
    assert len({json.dumps(embedded.json()) for embedded, _, _ in answers}) == CLIENTS
    assert sum(sizes) == 3 * CLIENTS
    assert max(sizes) > 1


@pytest.mark.slow
def test_strangers_that_stall_hang_up_or_talk_nonsense_stop_nobody(address):
    place = (urlsplit(address).hostname, urlsplit(address).port)
    host = f"Host: {urlsplit(address).netloc}\r\n".encode()
    stalled = []
    for start in (
        b"POST /search HTTP/1.1\r\n" + host + b"Content-Length: 1000000\r\n\r\nhalf",
        b"POST /search HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"POST /sea",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n" + host + b"X: " + b"x" * 100_000,
        b"GET /" + b"../" * 3000 + b" HTTP/1.1\r\n" + host + b"\r\n",
    ):
        for hangs_up in (False, True):
            stranger = socket.create_connection(place, timeout=10)
            with contextlib.suppress(OSError):  # the server may hang up first
                stranger.sendall(start)
            stalled.append(stranger)
            if hangs_up:
                stranger.close()
    began = time.monotonic()
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.post("/search", content=encoded(noise())).status_code == 200
        assert client.get("/").status_code == 200
    assert time.monotonic() - began < 60
    for stranger in stalled:
        stranger.close()


@pytest.mark.slow
def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(address):
    place = (urlsplit(address).hostname, urlsplit(address).port)
    with socket.create_connection(place, timeout=30) as stranger:
        head = f"POST /embed HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nContent-Length: {10**12}\r\n\r\n"
        stranger.sendall(head.encode())
        answer = stranger.recv(65536)
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    from starlette.requests import Request

    from unseen.deploy.server import uploads

    monkeypatch.setattr(uploads, "SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(60)

    with pytest.raises(uploads.Refused) as caught:
        asyncio.run(uploads.read_body(Request({"type": "http", "headers": []}, receive)))
    assert caught.value.status == 408


def test_who_goes_away_during_an_upload_is_no_failure_of_the_server(make_app):
    sent = []

    async def send(message):
        sent.append(message)

    async def upload():
        messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        headers = [(b"host", b"127.0.0.1:8000"), (b"content-length", b"1000")]
        scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": headers}
        await make_app()(scope, receive, send)

    asyncio.run(upload())
    assert sent[0]["status"] == 400


@pytest.mark.slow
def test_embeddings_and_attention_at_once_are_not_mixed_up(sides):
    """One network in many threads: what its layers give is each image's own."""
    model = sides[0].model
    images = [noise(seed=seed) for seed in range(6)]
    prepared = [model.prepare(image)[None] for image in images]
    embeddings = [model.embed_prepared(one) for one in prepared]
    maps = [model.attention(image).maps for image in images]

    def work(turn):
        row = turn % len(images)
        if turn % 2:
            return torch.equal(model.embed_prepared(prepared[row]), embeddings[row])
        again = model.attention(images[row]).maps
        return all((again[name] == wanted).all() for name, wanted in maps[row].items())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(300)))
