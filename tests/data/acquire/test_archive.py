"""Archives that are whole, broken, or hostile."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unseen.data.acquire import archive
from unseen.data.acquire.archive import ArchiveError, unpack

CONTENT = {"images/a b.jpg": b"1" * 5000, "images/deep/ü.png": b"2" * 3, "list.txt": b""}


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["x.tgz", "x.tar", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_unpacks_every_kind(tmp_path: Path, name: str) -> None:
    modes = {"tgz": "w:gz", "tar": "w", "bz2": "w:bz2", "xz": "w:xz"}
    path = tmp_path / name
    suffix = name.rsplit(".", 1)[1]
    make_zip(path, CONTENT) if suffix == "zip" else make_tar(path, CONTENT, modes[suffix])
    unpack(path, tmp_path / "out")
    assert files(tmp_path / "out") == CONTENT
    assert not list((tmp_path / "out").glob(".*"))


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"inner.txt": b"1"}).read_bytes()
    members = {"images/1.jpg": b"2", "labels.zip": inner}
    unpack(make_tar(tmp_path / "x.tar", members, "w"), tmp_path / "out")
    assert files(tmp_path / "out") == members


def test_a_zip_may_be_divided_as_windows_divides(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "x.zip", {"images\\": b"", "images\\1.jpg": b"1"}), tmp_path / "out")
    assert files(tmp_path / "out") == {"images/1.jpg": b"1"}


@pytest.mark.parametrize("suffix", ["zip", "tgz"])
def test_what_unpacks_to_so_much_more_that_it_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    members = {f"{index}.txt": bytes(1_000_000) for index in range(5)}
    path = tmp_path / f"x.{suffix}"
    make_zip(path, members) if suffix == "zip" else make_tar(path, members)
    unpack(path, tmp_path / "modest")
    assert files(tmp_path / "modest") == members
    monkeypatch.setattr("unseen.data.acquire.archive.MODEST", 1_000_000)
    with pytest.raises(ArchiveError, match=r"unpacks to more than 100 times its size.*Nothing was unpacked"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_keeps_what_lies_there_and_replaces_files_of_the_same_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "own.jpg").write_bytes(b"mine")
    (out / "images" / "a b.jpg").write_bytes(b"old")
    unpack(make_zip(tmp_path / "x.zip", CONTENT), out)
    assert files(out) == CONTENT | {"images/own.jpg": b"mine"}


@pytest.mark.parametrize("in_the_way", ["list.txt/own.jpg", "images/deep"])
def test_what_is_in_the_way_of_one_member_keeps_all_from_being_moved(tmp_path: Path, in_the_way: str) -> None:
    out = tmp_path / "out"
    for name in ("images/a b.jpg", in_the_way):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    before = files(out)
    with pytest.raises(ArchiveError, match=r"is a (file|folder) where the archive has a (folder|file)\."):
        unpack(make_zip(tmp_path / "x.zip", CONTENT), out)
    assert files(out) == before


def test_what_cannot_be_moved_takes_all_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "a b.jpg").write_bytes(b"mine")

    def replace(source: Path, target: Path) -> None:
        if target == out / "list.txt":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        whole(source, target)

    whole = os.replace
    monkeypatch.setattr(archive.os, "replace", replace)
    with pytest.raises(ArchiveError, match=r"Could not unpack .*cross-device"):
        unpack(make_zip(tmp_path / "x.zip", CONTENT), out)
    assert files(out) == {"images/a b.jpg": b"mine"}
    assert [path.name for path in out.iterdir()] == ["images"]


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "images/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt", "\\\\host\\evil"],
)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_refuses_paths_that_lead_out_and_unpacks_nothing(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    path = make(tmp_path / "x.archive", {"good.txt": b"1", name: b"2"})
    out = tmp_path / "deep" / "er" / "out"
    with pytest.raises(ArchiveError, match=r"not safe.*Nothing was unpacked"):
        unpack(path, out)
    assert list(out.iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_refuses_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as opened:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = kind, "/etc/passwd"
        opened.addfile(entry)
    with pytest.raises(ArchiveError, match="'link' is a link or a device"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_refuses_links_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as opened:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc/passwd")
    with pytest.raises(ArchiveError, match="is a link"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("name", ["x.tgz", "x.zip"])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, name: str, share: float) -> None:
    members = {f"images/{index}.jpg": bytes(range(256)) * 40 for index in range(50)}
    path = make_zip(tmp_path / name, members) if name.endswith("zip") else make_tar(tmp_path / name, members)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArchiveError, match="get it again"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_member_of_a_zip_leaves_nothing(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"good.txt": b"1", "bad.bin": bytes(range(256)) * 100})
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ArchiveError, match="broken"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def damaged_header(whole: bytes) -> bytes:
    return whole[:1024] + bytes([whole[1024] ^ 0xFF]) + whole[1025:]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("broken", [lambda whole: whole[:1024], lambda whole: whole[:1300], damaged_header])
def test_a_tar_whose_members_end_too_soon_leaves_nothing(
    tmp_path: Path, broken: Callable[[bytes], bytes], compress: Callable[[bytes], bytes]
) -> None:
    path = make_tar(tmp_path / "x.tar", {"1.jpg": b"1" * 512, "2.jpg": b"2" * 512}, "w")
    path.write_bytes(compress(broken(path.read_bytes())))
    with pytest.raises(ArchiveError, match=r"broken or incomplete \(it was cut .* get it again"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_one_block_of_zeros_ends_a_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", {"1.jpg": b"1" * 512}, "w")
    path.write_bytes(path.read_bytes()[: 1024 + 512])
    unpack(path, tmp_path / "out")
    assert files(tmp_path / "out") == {"1.jpg": b"1" * 512}


def test_a_web_page_is_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"<!DOCTYPE html><html>quota exceeded</html>")
    with pytest.raises(ArchiveError, match="<!DOCTYPE html"):
        unpack(path, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, *arguments: Any) -> int:
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, *arguments)

    whole = archive._write
    path = make_zip(tmp_path / "x.zip", CONTENT)
    monkeypatch.setattr(archive, "_write", write)
    with pytest.raises(ArchiveError, match="disk is full"):
        unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
