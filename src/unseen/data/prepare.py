"""From a published data set to a folder that its source can read: download, check, unpack, count."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from unseen.data.archive import is_archive, unpack
from unseen.data.download import DownloadError, RemoteFile, fetch
from unseen.data.manifest import Manifest, ManifestError


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

    Args:
        root: folder of the data set.
        files: what it is made of.
        page: where a person finds those files.
        read: its source; must raise `ManifestError` as long as the data set is not complete.
        timeout: see `fetch`.
        attempts: see `fetch`.
        pause: see `fetch`.
        again: fetch and unpack even if it can be read.
        keep_archives: whether archives stay after they were unpacked.
        console: where progress is shown; `None` is standard error.

    Raises:
        DownloadError: a file must be got by hand (all such are listed, with their places), or see `fetch`.
        ArchiveError: see `unpack`.
        ManifestError: the data set is not complete after all.
    """
    if not again:
        try:
            return read()
        except ManifestError:
            pass  # not there yet: that is what this is for
    _require_manual(root, files, page)
    _require_space(root, files)
    with _progress(console) as bar:
        for file in files:
            target = _fetch(file, root, page, bar, timeout, attempts, pause)
            if is_archive(file.name):
                task = bar.add_task(f"unpack {file.name}", total=None)
                unpack(target, root / file.into)
                bar.update(task, total=1, completed=1)
    manifest = read()
    for file in files:
        if is_archive(file.name) and not keep_archives:
            _place(file, root).unlink()
    return manifest


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
    missing = sum(file.bytes or 0 for file in files if not _place(file, root).exists())
    unpacked = sum(file.bytes or 0 for file in files if is_archive(file.name))
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < missing + unpacked:
        raise DownloadError(
            f"'{root}' needs about {(missing + unpacked) / 1e9:.1f} GB; {free / 1e9:.1f} GB are free. "
            "Make room or choose another data.root."
        )


def _fetch(
    file: RemoteFile, root: Path, page: str, bar: Progress, timeout: float, attempts: int, pause: float
) -> Path:
    place = _place(file, root)
    task = bar.add_task(file.name, total=file.bytes)
    try:
        return fetch(
            file,
            place.parent,
            timeout=timeout,
            attempts=attempts,
            pause=pause,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    except DownloadError as error:
        raise DownloadError(f"{error}\nBy hand: {page} has it; put it at '{place}'.") from error


@contextmanager
def _progress(console: Console | None) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        yield bar
