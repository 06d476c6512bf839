"""Fetch one published file: resumed where it broke off, checked for length and checksum, put in place whole.

What arrives is kept in `<name>.part` until it is complete, so that after a break only the rest is fetched;
`<name>.part.version` says of which version of the file it is, so that two versions are never joined.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

BLOCK = 1 << 20
"""Most bytes read at a time."""

Progress = Callable[[int, int | None], None]
"""Told the bytes so far and, if known, in all."""


class DownloadError(ValueError):
    """A file could not be had; the message says what arrived, what was wanted, and what to do."""


class _Interrupted(Exception):
    """The connection gave less than all; another attempt may continue."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a distribution.

    Args:
        name: what it is called on disk.
        url: http(s) address; `None`: it can only be got by hand.
        bytes: published length.
        md5: published checksum (hex), or
        sha256: published checksum (hex).
        into: folder under the data root where it, or what an archive holds, belongs.
    """

    name: str
    url: str | None = None
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    into: str = "."

    def __post_init__(self) -> None:
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise DownloadError(f"The address '{self.url}' of {self.name} is not http or https.")
        for place in (self.name, self.into):
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise DownloadError(f"'{place}' lies outside the folder of the data, where files belong.")

    @property
    def has_checksum(self) -> bool:
        """Whether a file on disk can be told from any other."""
        return self.md5 is not None or self.sha256 is not None


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    timeout: float,
    attempts: int,
    pause: float,
    progress: Progress = lambda done, total: None,
    again: bool = False,
) -> Path:
    """Download `file` into `folder` and check it; a file that is already there is only checked.

    Args:
        file: what to fetch.
        folder: where to put it; made if it is missing.
        timeout: seconds without a byte after which an attempt is given up.
        attempts: connections to try in all; each continues where the last one ended.
        pause: seconds before the second attempt; doubled before each later one.
        progress: is told how far it is.
        again: fetch it even if it is there; that one stays until the new one is whole.

    Raises:
        DownloadError: the address is not valid, the server refuses, gives something else, breaks off or
            stalls in every attempt, the disk is full, or length or checksum are not the published ones.
    """
    target = folder / file.name
    if target.exists() and not again:
        _check(target, file, "Remove it, or replace it with the published file.")
        return target
    if file.url is None:
        raise DownloadError(f"{file.name} has no public address: get it by hand and put it at '{target}'.")
    part = _part(target)
    with _writing(part):
        folder.mkdir(parents=True, exist_ok=True)
    _fetch_part(file, part, timeout, attempts, pause, progress)
    try:
        _check(
            part, file, "What arrived was removed. Run it again; if it stays so, the published file changed."
        )
    except DownloadError:
        _drop(part)
        raise
    _version_file(part).unlink(missing_ok=True)
    os.replace(part, target)
    return target


def bytes_so_far(target: Path) -> int:
    """Bytes that an interrupted download of `target` left."""
    return _size(_part(target))


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _fetch_part(
    file: RemoteFile, part: Path, timeout: float, attempts: int, pause: float, progress: Progress
) -> None:
    reason: _Interrupted | None = None
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _continue(file, part, timeout, progress)
        except _Interrupted as error:
            reason = error
        else:
            return
    raise DownloadError(
        f"{file.url}: {reason} (attempt {attempts} of {attempts}). {_size(part):,} bytes are kept: "
        "run it again to continue from there."
    ) from reason


def _continue(file: RemoteFile, part: Path, timeout: float, progress: Progress) -> None:
    """One connection: append what is missing."""
    have = _size(part)
    if file.bytes is not None and have >= file.bytes:
        return  # the checks decide what it is
    # A compressed transfer would make lengths and ranges mean something else.
    headers = {"User-Agent": "unseen", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := _kept_version(part):
            headers["If-Range"] = version  # if it changed, all of it comes
    try:
        # Of http or https: `RemoteFile` has looked, and a redirection leads to no other.
        with urlopen(Request(_address(file), headers=headers), timeout=timeout) as response:  # noqa: S310
            start, total = _extent(response, file)
            if start > 0:
                _require_same_version(response.headers, part)
            if start > have:
                raise DownloadError(f"{file.url} sends bytes from {start:,} on where {have:,} was asked for.")
            _append(response, part, start, total, progress)
    except HTTPError as error:
        _explain_refusal(error, file, part)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_words(error, timeout)) from error


def _address(file: RemoteFile) -> str:
    """The address as it is sent, in ASCII; what is quoted already stays as it is."""
    parts = urlsplit(str(file.url))
    try:
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    except UnicodeError as error:
        raise DownloadError(
            f"The address '{file.url}' of {file.name} is not valid ({error}). Correct it."
        ) from error
    return parts._replace(netloc=host, path=path, query=query, fragment="").geturl()


def _version(headers: Message) -> str | None:
    """What tells this version of a file from others; a weak ETag may be that of several."""
    etag = headers.get("ETag", "W/")
    version = headers.get("Last-Modified") if etag.startswith("W/") else etag
    return version if version and version.isprintable() else None  # it is sent back as a header


def _kept_version(part: Path) -> str | None:
    path = _version_file(part)
    return path.read_text(encoding="latin-1") if path.exists() else None


def _keep_version(headers: Message, part: Path) -> None:
    _version_file(part).unlink(missing_ok=True)
    if version := _version(headers):
        _version_file(part).write_text(version, encoding="latin-1")


def _require_same_version(headers: Message, part: Path) -> None:
    """For servers that do not know If-Range; one that does need not repeat the version."""
    before, now = _kept_version(part), _version(headers)
    if before and now and before != now:
        _drop(part)
        raise _Interrupted("the file was changed, and what was kept of the old one was dropped")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _extent(response: http.client.HTTPResponse, file: RemoteFile) -> tuple[int, int | None]:
    """Where the body starts, and how long the whole file is according to the server, or else as published."""
    length = response.headers.get("Content-Length", "")
    start, total = 0, int(length) if length.isdigit() else None
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise DownloadError(f"{file.url} answers a partial request without saying which part it sends.")
        start = int(match[1])
        # All the rest was asked for: where nobody knows the length, the last byte announced is the file's.
        total = int(match[3]) if match[3] != "*" else file.bytes or int(match[2]) + 1
    if total is not None and file.bytes is not None and total != file.bytes:
        raise DownloadError(
            f"{file.url} announces {total:,} bytes where {file.bytes:,} were published: "
            "it no longer gives that file (it may be a page that asks for something)."
        )
    return start, total if total is not None else file.bytes


def _append(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: Progress
) -> None:
    done = start
    # Unbuffered: what a full disk refuses is refused in `write`, and what was written counts.
    with _writing(part):
        out = part.open("ab", buffering=0)
    with out:
        with _writing(part):
            out.truncate(start)
            if start == 0:
                _keep_version(response.headers, part)
        while block := response.read1(BLOCK):
            with _writing(part):
                _write_all(out, block)
            done += len(block)
            progress(done, total)
            if total is not None and done > total:
                raise DownloadError(f"The server sends more than the {total:,} bytes that it should.")
    if total is not None and done < total:
        raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")
    if _size(part) != done:
        _drop(part)
        raise DownloadError(
            f"'{part}' was written by something else too, and was removed. Run it again, once at a time."
        )


def _write_all(out: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[out.write(rest) :]


def _explain_refusal(error: HTTPError, file: RemoteFile, part: Path) -> None:
    if error.code == 416:
        # Nothing is left to send: what is here is as long as the file, or belongs to another one.
        _require_same_version(error.headers, part)
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total is not None and int(total[1]) == _size(part):
            return
        _drop(part)
        raise _Interrupted("what was kept did not fit the file and was dropped") from error
    if error.code >= 500 or error.code in (408, 429):
        raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
    raise DownloadError(
        f"{file.url} answers {error.code} {error.reason}: the address has changed."
    ) from error


def _words(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return f"no byte came for {timeout:g} seconds"
    if isinstance(error, URLError):
        return f"no connection ({error.reason})"
    return f"the connection broke ({type(error).__name__})"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the disk refuses is not the server's fault: no other attempt would help."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"The disk is full at '{path.parent}'. Make room and run it again: it continues from there."
            ) from error
        raise DownloadError(f"Could not write '{path}': {error}") from error


def _check(path: Path, file: RemoteFile, remedy: str) -> None:
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        raise DownloadError(f"'{path}' has {size:,} bytes where {file.bytes:,} were published. {remedy}")
    for algorithm, wanted in (("md5", file.md5), ("sha256", file.sha256)):
        if wanted is None:
            continue
        with path.open("rb") as stream:
            got = hashlib.file_digest(stream, algorithm).hexdigest()
        if got != wanted:
            raise DownloadError(f"'{path}' has the {algorithm} {got} where {wanted} was published. {remedy}")
