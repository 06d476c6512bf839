"""From a published data set to a folder that its source can read: download, check, unpack, count."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from unseen.data.acquire.archive import is_archive, remove_leftovers, unpack
from unseen.data.acquire.download import DownloadError, RemoteFile, bytes_so_far, fetch
from unseen.data.manifest import Manifest
from unseen.data.sources.layout import IncompleteData
from unseen.files import exclusive_lock

LOCK = ".prepare.lock"
"""Whoever locks this file of the data root may write there, and nobody else; it stays, as a lock must."""


def prepare(
    root: Path,
    files: Sequence[RemoteFile],
    page: str,
    read: Callable[[], Manifest],
    *,
    timeout: float,
    attempts: int,
    pause: float,
    again: bool,
    keep_archives: bool,
    console: Console | None = None,
) -> Manifest:
    """Make a data set readable; does nothing if it already is.

    Of several processes that do so at once, one works and the others wait.

    Args:
        root: folder of the data set.
        files: what it is made of.
        page: where a person finds those files.
        read: its source; must raise `IncompleteData` as long as the data set is not complete.
        timeout: see `fetch`.
        attempts: see `fetch`.
        pause: see `fetch`.
        again: fetch and unpack even if it can be read; a file whose checksum fits need not be fetched.
        keep_archives: whether archives stay after they were unpacked.
        console: where progress is shown; `None` is standard error.

    Raises:
        DownloadError: a file must be got by hand (all such are listed, with their places), or see `fetch`.
        ArchiveError: see `unpack`.
        ManifestError: the data set is not complete after all, or cannot be read as it was asked for.
    """
    console = console or Console(stderr=True)
    if not again:
        with suppress(IncompleteData):  # before locking: a finished set may lie in a read-only folder
            return read()
    with _locked(root, console):
        if not again:
            with suppress(IncompleteData):  # another process may have finished it meanwhile
                return read()
        _require_manual(root, files, page)
        for file in files:
            remove_leftovers(_place(file, root), root / file.into)
        _require_space(root, files)
        with _progress(console) as bar:
            for file in files:
                target = _fetch(file, root, page, bar, timeout, attempts, pause, again)
                if is_archive(file.name):
                    task = bar.add_task(f"unpack {file.name}", total=None)
                    unpack(target, root / file.into)
                    bar.update(task, total=1, completed=1)
        manifest = read()
        for file in files:
            if is_archive(file.name) and not keep_archives:
                _place(file, root).unlink()
        return manifest


@contextmanager
def _locked(root: Path, console: Console) -> Iterator[None]:
    def tell() -> None:
        console.print(f"Another process prepares '{root}': waiting for it.", markup=False)

    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive_lock(root / LOCK, tell))
        except OSError as error:
            raise DownloadError(
                f"Cannot write in data.root='{root}' ({error}). "
                "Name a folder that can be written: data.root=<folder>"
            ) from error
        yield


def _place(file: RemoteFile, root: Path) -> Path:
    # Archives lie at the root whatever they unpack into; other files belong where they are.
    return root / file.name if is_archive(file.name) else root / file.into / file.name


def _require_manual(root: Path, files: Sequence[RemoteFile], page: str) -> None:
    places = [_place(file, root) for file in files if file.url is None]
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise DownloadError(
            f"{len(missing)} of {len(files)} files have no public address. Get them from {page} "
            "and put them at:\n  " + "\n  ".join(missing) + "\nThen run the same command again."
        )


def _require_space(root: Path, files: Sequence[RemoteFile]) -> None:
    """Images hardly compress: an archive needs its own length and as much again unpacked."""
    places = [(file, _place(file, root)) for file in files]
    missing = sum(
        max(0, (file.bytes or 0) - bytes_so_far(place)) for file, place in places if not place.exists()
    )
    unpacked = sum(file.bytes or 0 for file in files if is_archive(file.name))
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < missing + unpacked:
        raise DownloadError(
            f"'{root}' needs about {(missing + unpacked) / 1e9:.1f} GB; {free / 1e9:.1f} GB are free. "
            "Make room or choose another data.root."
        )


def _fetch(
    file: RemoteFile,
    root: Path,
    page: str,
    bar: Progress,
    timeout: float,
    attempts: int,
    pause: float,
    again: bool,
) -> Path:
    place = _place(file, root)
    if not file.has_checksum:
        bar.console.print(f"{file.name} is unchecked: no checksum of it is published.", markup=False)
    task = bar.add_task(file.name, total=file.bytes)
    try:
        return fetch(
            file,
            place.parent,
            timeout=timeout,
            attempts=attempts,
            pause=pause,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            again=again and file.url is not None and not file.has_checksum,
        )
    except DownloadError as error:
        raise DownloadError(f"{error}\nBy hand: {page} has it; put it at '{place}'.") from error


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        yield bar
