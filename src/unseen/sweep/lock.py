"""Who is at a job: a lock that the kernel frees when its holder dies; on a network file system a lease.

A lease is a file that its holder touches again and again; one that was not touched for a while has no holder.
Its age is measured by the file server's clock alone, so clocks of machines need not agree.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from unseen.files import replacing

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "9p",
    "fuse.",
    "wekafs",
)
"""How the names of file systems begin whose locks a kernel may not share with other machines."""
KINDS = ("auto", "kernel", "lease")
EXPIRES = 120.0
"""Seconds after which a lease that nobody touches has no holder."""
BEATS = 6
"""Times that a holder touches its lease before it would expire."""
BUSY = 75
"""Status with which a process leaves that finds its job taken (EX_TEMPFAIL)."""
PAUSE = 0.1
"""Seconds between two tries to be the only process at a folder."""

_held: set[int] = set()


class BusyError(RuntimeError):
    """Another process is at the job."""


def kind_for(folder: Path) -> str:
    """`lease` on a network file system, or where the system has no such locks; else `kernel`."""
    place = Path(folder).resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    system = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    return "lease" if fcntl is None or system.lower().startswith(NETWORK) else "kernel"


@contextmanager
def locked(folder: Path, kind: str = "auto", expires: float = EXPIRES) -> Iterator[None]:
    """Be the only process at a job.

    Args:
        folder: of the job.
        kind: `kernel`, `lease`, or `auto` for what the file system needs; all must agree.
        expires: seconds without a sign of life after which a lease has no holder.

    Raises:
        BusyError: another process is at it; the message names it.
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"lock={kind}: choices are {', '.join(KINDS)}.")
    kind = kind_for(folder) if kind == "auto" else kind
    with _kernel(folder) if kind == "kernel" else _lease(folder, expires):
        yield


@contextmanager
def awaited(folder: Path, kind: str, given_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Be the only process at a folder, as `locked`, but wait until whoever is there has left.

    Args:
        folder: of what no two processes may do at once.
        kind: see `locked`.
        given_up: looked at before each try; ends the wait.

    Gives:
        whether this process is at it; not, where it gave up.
    """
    with ExitStack() as held:
        yield _entered(held, folder, kind, given_up)


def _entered(held: ExitStack, folder: Path, kind: str, given_up: Callable[[], bool]) -> bool:
    while not given_up():
        try:
            held.enter_context(locked(folder, kind))
            return True
        except BusyError:
            time.sleep(PAUSE)
    return False


def holder(folder: Path, expires: float = EXPIRES) -> str | None:
    """Who is at a job: machine and process; none if nobody is."""
    folder = Path(folder)
    with suppress(FileNotFoundError, ValueError):
        lease, age = _read(folder / "lease", folder)
        if age < expires:
            return str(lease["holder"])
    if fcntl is None:
        return None
    with suppress(FileNotFoundError), (folder / "lock").open("r", encoding="utf-8") as file:
        try:
            # For a moment; who wants the lock tries for longer than that.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "another process"
    return None


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _kernel(folder: Path) -> Iterator[None]:
    if (other := holder(folder)) is not None:
        raise BusyError(f"{folder}: {other} is at it.")
    with (Path(folder) / "lock").open("a+", encoding="utf-8") as file:
        _take(file, folder)
        file.truncate(0)
        file.write(_me())
        file.flush()
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())
            fcntl.flock(file, fcntl.LOCK_UN)  # of copies that children may have, too


def _take(file: IO[str], folder: Path) -> None:
    """Those who only look hold the lock for a moment, and must not be taken for a holder."""
    for left in range(10, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if not left:
                file.seek(0)
                raise BusyError(f"{folder}: {file.read().strip() or 'another process'} is at it.") from None
            time.sleep(0.05)


def _forget() -> None:
    """A forked child (a loading process) must not keep the lock when its parent dies."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def _lease(folder: Path, expires: float) -> Iterator[None]:
    folder = Path(folder)
    path, token = folder / "lease", uuid.uuid4().hex
    _claim(path, token, expires)
    ended = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, token, expires / BEATS, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(FileNotFoundError, ValueError):
            if _read(path, folder)[0]["token"] == token:
                path.unlink()


def _claim(path: Path, token: str, expires: float) -> None:
    """Make the lease, or take over one that expired.

    Of several that find the same lease expired one makes its tombstone, and only that one replaces it.
    """
    content = json.dumps({"holder": _me(), "token": token})
    try:
        _create(path, content)
        return
    except FileExistsError:
        pass
    lease, age = {"holder": "another process", "token": "unfinished"}, 0.0
    with suppress(FileNotFoundError):  # it is let go at this moment
        try:
            lease, age = _read(path, path.parent)
        except ValueError:  # it is written at this moment, or was not finished: then it expires, too
            age = _age(path, path.parent)
    if age < expires:
        raise BusyError(f"{path.parent}: {lease['holder']} is at it.")
    tombstone = path.with_name(f"lease.{lease['token']}")
    busy = BusyError(f"{path.parent}: another process takes it over at this moment.")
    try:
        _create(tombstone, content)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if _age(tombstone, path.parent) > expires:  # who made it died: the next try succeeds
                tombstone.unlink()
        raise busy from None
    try:
        # Another may have taken it over, tombstone and all, since it was read.
        with suppress(FileNotFoundError, ValueError):
            if _read(path, path.parent)[0]["token"] != lease["token"]:
                raise busy
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    finally:
        tombstone.unlink()


def _create(path: Path, content: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink()
            raise


def _read(path: Path, folder: Path) -> tuple[dict[str, str], float]:
    """The lease and its age in seconds, both as the file server has them now.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is half written.
    """
    # Opened, not only looked up: network file systems remember attributes for a while.
    with path.open("r", encoding="utf-8") as file:
        content = json.loads(file.read())
    return content, _age(path, folder)


def _age(path: Path, folder: Path) -> float:
    """Seconds since a file was touched, by the file server's clock.

    Raises:
        FileNotFoundError: there is none.
    """
    with path.open("rb") as file:
        touched = os.fstat(file.fileno()).st_mtime
    with tempfile.TemporaryFile(dir=folder) as clock:
        clock.write(b".")
        clock.flush()
        return os.fstat(clock.fileno()).st_mtime - touched


def _keep(path: Path, token: str, every: float, ended: threading.Event) -> None:
    while not ended.wait(every):
        try:
            is_mine = json.loads(path.read_text(encoding="utf-8"))["token"] == token
        except ValueError:
            is_mine = False
        except OSError:  # the server is away for a moment
            continue
        if not is_mine and not ended.is_set():
            print(f"error: {path} was taken over: this process stood still for too long.", file=sys.stderr)
            # Not an exception: whoever took over owns the folder, and nothing may be written there any more.
            os._exit(BUSY)
        with suppress(OSError):
            os.utime(path)
