"""Downloads from a server on loopback that breaks off, stalls, refuses, and lies about the length."""

from __future__ import annotations

import errno
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import pytest

from unseen.data.acquire import download
from unseen.data.acquire.download import DownloadError, RemoteFile, fetch

CONTENT = hashlib.shake_256(b"a published file").digest(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `misbehave` may answer a request itself and then returns True."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges: list[str | None] = []
        self.misbehave: Callable[[Handler, int], bool] = lambda handler, request: False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.server.misbehave(self, len(self.server.ranges)):
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(self.server.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
            self.end_headers()
            return
        self.head(start)
        self.wfile.write(self.server.content[start:])

    def head(self, start: int, length: int | None = None) -> None:
        total = len(self.server.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start if length is None else length))
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(
    server: Server, folder: Path, *, attempts: int = 3, timeout: float = 5.0, **published: object
) -> Path:
    file = RemoteFile("file.bin", url=server.url, **({"bytes": len(CONTENT), "md5": MD5} | published))  # type: ignore[arg-type]
    return fetch(file, folder, timeout=timeout, attempts=attempts, pause=0.0)


def break_off_after(length: int) -> Callable[[Handler, int], bool]:
    """Announce all, send `length` more bytes, hang up."""

    def misbehave(handler: Handler, request: int) -> bool:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        handler.head(start)
        handler.wfile.write(CONTENT[start : start + length])
        return True

    return misbehave


def test_a_whole_file_arrives_and_a_second_run_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    file = RemoteFile("file.bin", url=server.url, bytes=len(CONTENT), md5=MD5)
    options = {"timeout": 5.0, "attempts": 1, "pause": 0.0}
    path = fetch(file, tmp_path / "new", **options, progress=lambda *step: told.append(step))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    fetch(file, tmp_path / "new", **options)
    assert server.ranges == [None]
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_a_connection_that_breaks_off_is_continued_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.misbehave = lambda handler, request: request < 3 and break_off_after(1_000_000)(handler, request)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-"]


def test_what_arrived_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.misbehave = break_off_after(400_000)
    with pytest.raises(DownloadError, match=r"ended after 800,000 of 3,000,000 bytes \(attempt 2 of 2\)"):
        get(server, tmp_path, attempts=2)
    assert not (tmp_path / "file.bin").exists()
    server.misbehave = lambda handler, request: False
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=800000-"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    def whole(handler: Handler, request: int) -> bool:
        handler.head(0)
        handler.wfile.write(CONTENT[:500] if request == 1 else CONTENT)
        return True

    server.misbehave = whole
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500-"]


def test_a_stalled_connection_is_given_up_in_bounded_time(server: Server, tmp_path: Path) -> None:
    released = threading.Event()

    def stall(handler: Handler, request: int) -> bool:
        handler.head(0)
        handler.wfile.write(CONTENT[:1000])
        released.wait(30)
        return True

    server.misbehave = stall
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"no byte came for 0.2 seconds \(attempt 2 of 2\)\. 1,000 bytes"):
        get(server, tmp_path, attempts=2, timeout=0.2)
    assert time.monotonic() - started < 20
    released.set()


def test_a_length_that_is_not_the_published_one_is_refused_before_anything_is_kept(
    server: Server, tmp_path: Path
) -> None:
    server.content = b"<html>Please accept our terms</html>"
    with pytest.raises(DownloadError, match="announces 36 bytes where 3,000,000 were published"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_promises_more_than_comes(server: Server, tmp_path: Path) -> None:
    def promise(handler: Handler, request: int) -> bool:
        handler.head(0, length=len(CONTENT) + 10)
        handler.wfile.write(CONTENT)
        return True

    server.misbehave = promise
    with pytest.raises(DownloadError, match="ended after 3,000,000 of 3,000,010 bytes"):
        get(server, tmp_path, bytes=None)
    assert not (tmp_path / "file.bin").exists()


def test_a_length_that_promises_less_than_the_file_is_found_by_the_checksum(
    server: Server, tmp_path: Path
) -> None:
    def shorten(handler: Handler, request: int) -> bool:
        handler.head(0, length=1000)
        handler.wfile.write(CONTENT)
        return True

    server.misbehave = shorten
    with pytest.raises(DownloadError, match=f"has the md5 [0-9a-f]+ where {MD5} was published"):
        get(server, tmp_path, bytes=None)
    assert list(tmp_path.iterdir()) == []


def test_a_body_without_end_stops_at_the_published_length(server: Server, tmp_path: Path) -> None:
    def endless(handler: Handler, request: int) -> bool:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(65536))

    server.misbehave = endless
    with pytest.raises(DownloadError, match="sends more than the 3,000,000 bytes"):
        get(server, tmp_path)


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(DownloadError, match="md5"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_checked_too(server: Server, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    get(server, tmp_path / "right", md5=None, sha256=digest)
    with pytest.raises(DownloadError, match="sha256"):
        get(server, tmp_path / "wrong", md5=None, sha256="0" * 64)


def test_a_file_put_there_by_hand_is_checked_and_never_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"x" * len(CONTENT))
    with pytest.raises(DownloadError, match="Remove it, or replace it"):
        get(server, tmp_path)
    assert (tmp_path / "file.bin").exists()
    assert server.ranges == []


def test_a_leftover_of_another_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(CONTENT) + 5))
    with pytest.raises(DownloadError, match="3,000,005 bytes where 3,000,000"):
        get(server, tmp_path)
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(CONTENT) + 5))
    assert get(server, tmp_path, bytes=None).read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000005-", None]


def test_a_complete_leftover_only_has_to_be_moved(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path, bytes=None).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_something_else_writes_to_is_not_accepted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = download._write_all

    def write_and_be_disturbed(out: FileIO, block: bytes) -> None:
        write(out, block)
        with (tmp_path / "file.bin.part").open("ab") as other:
            other.write(b"of another process")

    monkeypatch.setattr(download, "_write_all", write_and_be_disturbed)
    with pytest.raises(DownloadError, match="something else"):
        get(server, tmp_path, bytes=None, md5=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("knows_if_range", [True, False])
@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_a_file_that_changed_after_a_break_is_fetched_anew(
    server: Server, tmp_path: Path, name: str, knows_if_range: bool
) -> None:
    old, new = '"old"', '"new"'
    before, now = b"A" * len(CONTENT), b"B" * len(CONTENT)
    asked: list[str | None] = []

    def serve(handler: Handler, request: int) -> bool:
        asked.append(handler.headers.get("If-Range"))
        content, version = (before, old) if request == 1 else (now, new)
        resumes = handler.headers.get("Range") and not (knows_if_range and asked[-1] != version)
        start = 1_000_000 if resumes else 0
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", version if name == "ETag" else 'W/"weak"')
        handler.send_header("Last-Modified", version if name == "Last-Modified" else "always")
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : 1_000_000 if request == 1 else None])
        return True

    server.misbehave = serve
    with pytest.raises(DownloadError, match="1,000,000 bytes are kept"):
        get(server, tmp_path, attempts=1, bytes=None, md5=None)
    assert get(server, tmp_path, bytes=None, md5=None).read_bytes() == now
    assert asked == ([None, old] if knows_if_range else [None, old, None])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_an_unchanged_file_is_continued_though_its_version_is_not_repeated(
    server: Server, tmp_path: Path
) -> None:
    def serve(handler: Handler, request: int) -> bool:
        if request > 1:
            return False  # a part without the version
        handler.send_response(200)
        handler.send_header("ETag", '"one"')
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:1000])
        return True

    server.misbehave = serve
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("published", [None, len(CONTENT)])
def test_a_part_of_a_file_whose_length_is_not_said_must_come_to_its_end(
    server: Server, tmp_path: Path, published: int | None
) -> None:
    def serve(handler: Handler, request: int) -> bool:
        if request == 1:
            return break_off_after(1_000_000)(handler, request)
        start = request * 1_000_000 - 1_000_000
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/*")
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + 1_000_000])
        return True

    server.misbehave = serve
    with pytest.raises(DownloadError, match="ended after 2,000,000 of 3,000,000 bytes"):
        get(server, tmp_path / "cut", attempts=2, bytes=published, md5=None)
    server.ranges.clear()
    assert get(server, tmp_path / "whole", bytes=published, md5=None).read_bytes() == CONTENT


@pytest.mark.parametrize(("code", "asked"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_a_refusal_is_repeated_only_where_another_attempt_may_help(
    server: Server, tmp_path: Path, code: int, asked: int
) -> None:
    def refuse(handler: Handler, request: int) -> bool:
        handler.send_error(code)
        return True

    server.misbehave = refuse
    with pytest.raises(DownloadError, match=f"answers {code}"):
        get(server, tmp_path)
    assert len(server.ranges) == asked
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_was_not_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    def elsewhere(handler: Handler, request: int) -> bool:
        handler.head(2_000_000)
        return True

    server.misbehave = elsewhere
    with pytest.raises(DownloadError, match="from 2,000,000 on where 0 was asked for"):
        get(server, tmp_path)


@pytest.mark.parametrize("name", ["vögel 1.zip?of=ü", "v%C3%B6gel%201.zip?of=%C3%BC"])
def test_letters_that_an_address_cannot_hold_are_quoted_once(
    server: Server, tmp_path: Path, name: str
) -> None:
    asked: list[str] = []

    def note(handler: Handler, request: int) -> bool:
        asked.append(handler.path)
        return False

    server.misbehave = note
    file = RemoteFile("file.bin", url=server.url.replace("file.bin", name), md5=MD5)
    assert fetch(file, tmp_path, timeout=5.0, attempts=1, pause=0.0).read_bytes() == CONTENT
    assert asked == ["/v%C3%B6gel%201.zip?of=%C3%BC"]


def test_a_host_that_cannot_be_quoted_is_named(tmp_path: Path) -> None:
    file = RemoteFile("file.bin", url=f"http://{'ü' * 80}.example/file.bin")
    with pytest.raises(DownloadError, match=r"of file\.bin is not valid"):
        fetch(file, tmp_path, timeout=2, attempts=1, pause=0.0)


def test_no_server_at_all(tmp_path: Path) -> None:
    file = RemoteFile("file.bin", url="http://127.0.0.1:9/file.bin")
    with pytest.raises(DownloadError, match=r"no connection .*refused"):
        fetch(file, tmp_path, timeout=2, attempts=2, pause=0.0)


def test_a_full_disk_is_named_and_another_attempt_is_not_made(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_write_all", full)
    with pytest.raises(DownloadError, match="disk is full"):
        get(server, tmp_path)
    assert len(server.ranges) == 1
    assert not (tmp_path / "file.bin").exists()


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="Could not write"):
        get(server, tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    "place", [{"name": "../file.zip"}, {"name": "/file.zip"}, {"name": "file.zip", "into": "a/../../b"}]
)
def test_a_file_stays_in_the_folder_of_its_data(place: dict[str, str]) -> None:
    with pytest.raises(DownloadError, match="lies outside the folder of the data"):
        RemoteFile(**place)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file.zip"])
def test_only_http_is_fetched(url: str) -> None:
    with pytest.raises(DownloadError, match="not http"):
        RemoteFile("file.zip", url=url)
