"""Unpack an archive that may be broken or hostile: nothing leaves the folder, nothing half-unpacked stays."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    # Encrypted members, and methods that zipfile does not know.
    RuntimeError,
)

Member = tuple[str, Callable[[], IO[bytes]] | None]
"""A name, and what opens its content; `None` for a folder."""


class ArchiveError(ValueError):
    """An archive that is broken, unsafe or does not fit the disk; the message names it and the remedy."""


MODEST = 1 << 30
"""Bytes that any archive may unpack to."""
MOST_TIMES = 100
"""Beyond them, how many times its size: photographs hardly shrink, and text by a factor of ten."""


def is_archive(name: str) -> bool:
    """Whether a file of that name is unpacked."""
    return name.lower().endswith(SUFFIXES)


def require_end(opened: tarfile.TarFile) -> None:
    """Refuse a tar, all of whose members were read, without the mark of its end: a block of zeros.

    `tarfile` takes a later header that is broken, and the end of a file that was cut between two members, for
    the end of the archive. By the standard the mark is two blocks; some programs write one.

    Raises:
        tarfile.ReadError: it has none.
    """
    assert opened.fileobj is not None  # it is open
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it was cut between two members, or the header of one is damaged")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, beside what is there already; only files of the same name are replaced.

    All members are written to a hidden folder beside their place first, and moved when every one is whole;
    where one cannot be moved, all are moved back. Only files and folders are accepted, and no permission or
    owner is taken over.

    Args:
        archive: `.zip` or (compressed) `.tar`.
        folder: where its content belongs; made if it is missing.

    Raises:
        ArchiveError: a member's path is absolute or climbs out, a member is a link or a device, the archive
            is broken, encrypted or of another kind, it unpacks to so much more than it is that it is meant to
            fill the disk, a folder is there where it has a file or the other way round, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = Path(tempfile.mkdtemp(dir=folder, prefix=f".{archive.name}."))
    members, replaced = unpacked / "members", unpacked / "replaced"
    try:
        members.mkdir()
        left = max(MODEST, MOST_TIMES * archive.stat().st_size)
        for name, open_member in _members(archive):
            left -= _write(members / _safe(name, archive), open_member, left)
            if left < 0:
                raise _bomb(archive)
        with ExitStack() as undo:
            _move_into(folder, members, replaced, undo)
            undo.pop_all()
    except BROKEN as error:
        raise ArchiveError(
            f"'{archive}' is broken or incomplete ({error}). Remove it and get it again."
        ) from error
    except OSError as error:
        raise ArchiveError(_disk_message(error, archive, folder)) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def remove_leftovers(archive: Path, folder: Path) -> None:
    """Remove what a process that was killed while it unpacked `archive` into `folder` left there.

    Only for whoever is alone in `folder`: what another process unpacks at this moment looks the same.
    """
    # The name that `mkdtemp` gives, and nothing else that begins like it.
    ours = re.compile(re.escape(f".{archive.name}.") + "[a-z0-9_]{8}")
    for path in folder.iterdir() if folder.is_dir() else ():
        if ours.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _members(archive: Path) -> Iterator[Member]:
    # A tar is known by its beginning. A zip is by its end, where a tar may hold one as its last member.
    if tarfile.is_tarfile(archive):
        return _tar_members(archive)
    if zipfile.is_zipfile(archive):
        return _zip_members(archive)
    with archive.open("rb") as stream:
        start = stream.read(20)
    raise ArchiveError(
        f"'{archive}' is no whole zip or tar archive: it starts with {start!r}. Remove it and get it again."
    )


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            kind = entry.external_attr >> 16 & 0o170000
            if kind not in (0, 0o040000, 0o100000):
                raise _unsafe(archive, entry.filename, "is a link or a device")
            is_folder = entry.filename.endswith(("/", "\\"))  # some programs on Windows write the latter
            yield entry.filename, None if is_folder else partial(opened.open, entry)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as opened:
        for entry in opened:
            if not (entry.isfile() or entry.isdir()):
                raise _unsafe(archive, entry.name, "is a link or a device")
            yield entry.name, None if entry.isdir() else partial(_content, opened, entry)
        require_end(opened)
        # The checksum of a compressed stream stands at its very end, behind the last member.
        while opened.fileobj is not None and opened.fileobj.read(1 << 20):
            pass


def _content(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(entry)
    assert stream is not None  # it is a regular file
    return stream


def _safe(name: str, archive: Path) -> PurePosixPath:
    # Judged as Windows would read it too: there a backslash divides, and 'C:' starts at a drive.
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "has an absolute path")
    if ".." in parts:
        raise _unsafe(archive, name, "climbs out of the folder")
    return PurePosixPath(*parts)


def _unsafe(archive: Path, name: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"'{archive}' is not safe to unpack: its member '{name}' {why}. Nothing was unpacked."
    )


def _bomb(archive: Path) -> ArchiveError:
    return ArchiveError(
        f"'{archive}' unpacks to more than {MOST_TIMES} times its size, as an archive does that is meant to "
        "fill a disk. Nothing was unpacked. If you trust it, unpack it yourself."
    )


def _write(path: Path, open_member: Callable[[], IO[bytes]] | None, most: int) -> int:
    """What was written, in bytes: by little more than `most`, whatever the archive says of itself."""
    if open_member is None:
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with open_member() as content, path.open("wb") as out:
        while written <= most and (block := content.read(1 << 20)):
            written += out.write(block)
    return written


def _move_into(folder: Path, source: Path, replaced: Path, undo: ExitStack) -> None:
    replaced.mkdir()
    for path in sorted(source.iterdir()):
        place = folder / path.name
        if path.is_dir() and place.is_dir():
            _move_into(place, path, replaced / path.name, undo)
            continue
        if os.path.lexists(place):
            if path.is_dir() or place.is_dir():
                kinds = ("a file", "a folder")
                raise FileExistsError(
                    f"'{place}' is {kinds[place.is_dir()]} where the archive has {kinds[path.is_dir()]}. "
                    "Move it elsewhere. Nothing was unpacked."
                )
            _move(place, replaced / path.name, undo)
        _move(path, place, undo)


def _move(path: Path, place: Path, undo: ExitStack) -> None:
    os.replace(path, place)
    undo.callback(os.replace, place, path)


def _disk_message(error: OSError, archive: Path, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full at '{folder}' while unpacking '{archive.name}'. Make room and run it again."
    return f"Could not unpack '{archive}' into '{folder}': {error}"
