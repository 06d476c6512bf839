"""Who may ask: hosts, other web sites, tokens, and how many at once."""

import asyncio

import pytest
from starlette.testclient import TestClient

from unseen.deploy.server.guard import AT_ONCE, Guard

TOKEN = "a token of nobody's"


@pytest.fixture
def guarded(make_app):
    with TestClient(
        make_app(hosts=None, token=TOKEN), base_url="http://photos.example", follow_redirects=False
    ) as client:
        yield client


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.1"])
def test_loopback_answers_to_its_names(client, host):
    assert client.get("/openapi.json", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "@127.0.0.1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(client, host):
    answer = client.get("/openapi.json", headers={"host": host})
    assert answer.status_code == 421
    assert "127.0.0.1 and localhost" in answer.json()["error"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://[::1", "https://x:y"]
)
def test_another_web_site_is_refused(client, origin):
    assert client.post("/search?id=0", headers={"origin": origin}).status_code == 403
    own = {"origin": "http://127.0.0.1:8000"}
    assert client.post("/search?id=0", headers=own).status_code == 200


def test_nothing_is_told_without_the_token(guarded):
    for path in ("/", "/page.js", "/about", "/image/0", "/openapi.json", "/nothing"):
        answer = guarded.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.post("/search?id=0").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer \xff".encode("latin-1")},
        {"cookie": "unseen_token=wrong"},
        {"cookie": 'unseen_token="; a]b=c'},
    ],
)
def test_wrong_tokens_are_refused(guarded, headers):
    assert guarded.get("/about", headers=headers).status_code == 401


def test_a_bearer_is_let_in(guarded):
    assert guarded.get("/about", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_the_printed_address_leaves_a_cookie_and_no_token_in_the_address(guarded):
    assert guarded.get("/", params={"token": "wrong"}).status_code == 401
    answer = guarded.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert guarded.get("/").status_code == 200
    assert guarded.post("/search?id=0").status_code == 200
    assert guarded.post("/search?id=0", headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("other", ["a]b=c", "a=b; =; c", 'prefs={"k":"v, w"}', "é=é".encode(), "x=\x01"])
def test_cookies_of_others_are_not_in_the_way(guarded, other):
    entry = guarded.get("/", params={"token": TOKEN}).headers["set-cookie"].partition(";")[0].encode()
    guarded.cookies.clear()
    other = other if isinstance(other, bytes) else other.encode()
    for cookies in (entry + b"; " + other, other + b"; " + entry):
        assert guarded.get("/about", headers={"cookie": cookies}).status_code == 200
    for cookies in (other, entry + b"x; " + other, entry.partition(b"=")[0] + b"="):
        assert guarded.get("/about", headers={"cookie": cookies}).status_code == 401


def test_two_servers_of_one_host_do_not_lock_each_other_out(make_app):
    tokens = (TOKEN, TOKEN[::-1])
    servers = [TestClient(make_app(hosts=None, token=token), follow_redirects=False) for token in tokens]
    kept = {}  # by one browser, by host whatever the port
    for client, token in zip(servers, tokens, strict=True):
        entry = client.get("/", params={"token": token}).headers["set-cookie"].partition(";")[0]
        kept |= [entry.split("=", 1)]
    brought = "; ".join(f"{name}={value}" for name, value in kept.items())
    for client in servers:
        with client:
            assert client.get("/about", headers={"cookie": brought}).status_code == 200


def test_many_uploads_at_once_are_asked_to_come_again():
    async def asked():
        free = asyncio.Event()
        answers = []

        async def app(scope, receive, send):
            await free.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(app, None, None)
        scope = {"type": "http", "method": "POST", "path": "/search", "headers": [], "query_string": b""}

        async def send(message):
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        tasks = [asyncio.create_task(guard(dict(scope), None, send)) for _ in range(AT_ONCE + 3)]
        await asyncio.sleep(0.05)
        assert answers == [503] * 3
        free.set()
        await asyncio.gather(*tasks)
        assert answers.count(200) == AT_ONCE
        await guard(dict(scope), None, send)
        assert answers[-1] == 200

    asyncio.run(asked())
