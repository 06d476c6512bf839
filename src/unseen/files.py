"""Writing files so that nobody ever reads half of one, and no two processes write the same."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces it when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold the bytes of a file, or the names in a folder, before anything else is written.

    Raises:
        OSError: the disk cannot hold a file. Of folders not every system can say so, and Windows opens none.
    """
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def refusing_lock(path: Path, refusal: str, patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, which stays.

    Args:
        path: of the lock.
        refusal: what is said where another process holds it.
        patience: seconds to wait for it.

    Raises:
        ValueError: another process holds it.
        OSError: the lock cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise ValueError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def storable(json_text: str) -> str:
    """JSON that UTF-8 can hold: what stands for bytes that are no text becomes JSON's escapes."""
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", json_text)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive_lock(path: Path, when_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, which stays; if another process holds it, say so and wait.

    Raises:
        OSError: the lock cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        when_waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
