"""From a server's archives to a manifest, for every published data set; and what stops on the way."""

from __future__ import annotations

import hashlib
import http.server
import io
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unseen.config.command_line import config_folder
from unseen.data.acquire.archive import ArchiveError, is_archive
from unseen.data.acquire.download import DownloadError, RemoteFile
from unseen.data.acquire.prepare import prepare
from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import cub

NAMES = ("cub", "cars", "sop", "inshop", "flowers", "pets", "plantvillage", "omniglot")


@pytest.fixture
def serve() -> Iterator[Callable[[Path], tuple[str, list[str]]]]:
    """`serve(folder)` gives the address of a server of its files, and the list of what is asked of it."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                asked.append(self.path)
                super().do_GET()

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def configuration(name: str, root: Path) -> DictConfig:
    replica_keys = {"test_species": ["Pepper,_bell", "Tomato"]} if name == "plantvillage" else {}
    published = OmegaConf.load(config_folder() / "data" / f"{name}.yaml")
    changes = {"root": str(root), "expected": None} | replica_keys
    return OmegaConf.create({"data": OmegaConf.merge(published, changes)})


def remote_files(config: DictConfig, archives: Path, url: str) -> list[RemoteFile]:
    """The files of the configuration, with the address, length and checksum of the replica's archives."""
    return [
        RemoteFile(
            file.name,
            url=f"{url}/{file.name}",
            bytes=(archives / file.name).stat().st_size,
            md5=hashlib.md5((archives / file.name).read_bytes()).hexdigest(),
            into=file.get("into", "."),
        )
        for file in config.data.download.files
    ]


Published = tuple[DictConfig, list[RemoteFile], list[str]]


@pytest.fixture
def published(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> Callable[[str], Published]:
    """`published(name)` serves a replica; gives its configuration (rooted at `tmp_path / "root"`), its files,
    and the list of what is asked of the server."""

    def put(name: str) -> Published:
        archives = replica_archives(name)
        url, asked = serve(archives)
        config = configuration(name, tmp_path / "root")
        return config, remote_files(config, archives, url), asked

    return put


def run(config: DictConfig, files: list[RemoteFile], **options: Any) -> Manifest:
    def read() -> Manifest:
        try:
            return instantiate(config.data.source)
        except InstantiationException as error:
            raise error.__cause__ or error from None

    defaults: dict[str, Any] = {
        "timeout": 5.0,
        "attempts": 2,
        "pause": 0.0,
        "again": False,
        "keep_archives": True,
    }
    defaults["console"] = Console(file=io.StringIO())
    page = config.data.download.page
    return prepare(Path(config.data.root), files, page, read, **(defaults | options))


@pytest.mark.parametrize("name", NAMES)
def test_downloads_unpacks_and_reads_and_then_does_nothing(
    name: str, replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives(name)
    url, asked = serve(archives)
    config = configuration(name, tmp_path / "with space" / name)
    files = remote_files(config, archives, url)
    first = run(config, files)
    assert sorted(asked) == sorted(f"/{file.name}" for file in files)
    for file in filter(lambda file: is_archive(file.name), files):
        (tmp_path / "with space" / name / file.name).unlink()
    assert run(config, files).content_hash == first.content_hash
    assert len(asked) == len(files)


def test_what_was_typed_wrong_starts_no_download(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    config, files, asked = published("plantvillage")
    run(config, files)
    (tmp_path / "root" / files[0].name).unlink()
    config.data.test_species = ["Tomatoo"]
    with pytest.raises(ManifestError, match=r"'Tomatoo'\. Choose from: Apple"):
        run(config, files)
    assert len(asked) == 1


def test_a_species_that_is_missing_from_the_disk_is_fetched(
    published: Callable[[str], Published],
) -> None:
    config, files, _ = published("plantvillage")
    config.data.expected = {"classes": 6}
    whole = run(config, files)
    shutil.rmtree(whole.root / "Tomato___Leaf_Mold")
    assert run(config, files).content_hash == whole.content_hash


def test_of_two_runs_at_once_one_works_and_the_other_waits_for_it(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    _, files, asked = published("cub")
    reached, may_go_on = threading.Event(), threading.Event()

    def read_slowly() -> Manifest:
        """Announces the read under the lock (the second one), and holds the lock until it may go on."""
        if not reached.is_set() and (tmp_path / "root" / ".prepare.lock").exists():
            reached.set()
            may_go_on.wait(30)
        return cub.read(tmp_path / "root", expected=None)

    told = io.StringIO()
    options: dict[str, Any] = {
        "timeout": 5.0,
        "attempts": 1,
        "pause": 0.0,
        "again": False,
        "keep_archives": True,
    }
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare, tmp_path / "root", files, "", read_slowly, **options)
        assert reached.wait(30)
        console = Console(file=told, width=1000)
        second = pool.submit(prepare, tmp_path / "root", files, "", read_slowly, console=console, **options)
        while "waiting" not in told.getvalue() and not second.done():
            time.sleep(0.01)
        assert asked == []
        may_go_on.set()
        assert first.result().content_hash == second.result().content_hash
    assert asked == ["/CUB_200_2011.tgz"]
    assert "Another process prepares" in told.getvalue()


def test_a_root_that_cannot_be_written_is_named_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configuration("cub", tmp_path / "file" / "root")
    with pytest.raises(DownloadError, match=r"Cannot write in data\.root='.*root'"):
        run(config, [])


def test_again_checks_what_is_there_and_archives_may_go(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    config, files, asked = published("flowers")
    run(config, files)
    run(config, files, again=True, keep_archives=False)
    assert len(asked) == 2
    assert not (tmp_path / "root" / "102flowers.tgz").exists()
    assert (tmp_path / "root" / "imagelabels.mat").exists()


def test_again_fetches_anew_what_has_no_checksum(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("cars")
    url, asked = serve(archives)
    config = configuration("cars", tmp_path / "root")
    file = RemoteFile("CARS196.zip", url=f"{url}/CARS196.zip")
    run(config, [file])
    kept = tmp_path / "root" / file.name
    kept.write_bytes(b"an older version")
    run(config, [file], again=True)
    assert len(asked) == 2
    assert kept.read_bytes() == (archives / file.name).read_bytes()
    run(config, [replace(file, url=None)], again=True)


def test_files_without_an_address_are_all_named_with_their_places(
    replica_archives: Callable[[str], Path], tmp_path: Path
) -> None:
    archives = replica_archives("inshop")
    config = configuration("inshop", tmp_path / "shop")
    files = [RemoteFile(**file) for file in config.data.download.files]
    with pytest.raises(DownloadError, match="3 of 3 files have no public address") as caught:
        run(config, files)
    places = ("img.zip", "Eval/list_eval_partition.txt", "Anno/list_bbox_inshop.txt")
    for place in places:
        assert str(tmp_path / "shop" / place) in str(caught.value)
    assert config.data.download.page in str(caught.value)
    for place in places:
        target = tmp_path / "shop" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archives / target.name, target)
    assert len(run(config, files)) == 24


def test_a_refused_download_says_how_to_go_on_by_hand(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("cub")
    url, _ = serve(tmp_path / "nothing here")
    config = configuration("cub", tmp_path / "root")
    with pytest.raises(DownloadError, match=r"answers 404(.|\n)*By hand: https://.*CUB_200_2011.tgz'"):
        run(config, remote_files(config, archives, url))


def test_a_broken_archive_without_checksum_leaves_no_image_in_place(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("cub")
    archive = archives / "CUB_200_2011.tgz"
    archive.write_bytes(archive.read_bytes()[:-2000])
    url, _ = serve(archives)
    config = configuration("cub", tmp_path / "root")
    with pytest.raises(ArchiveError, match="broken or incomplete"):
        run(config, [RemoteFile("CUB_200_2011.tgz", url=f"{url}/CUB_200_2011.tgz")])
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"CUB_200_2011.tgz", ".prepare.lock"}


def test_a_file_without_checksum_is_said_to_be_unchecked(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("cars")
    url, _ = serve(archives)
    config = configuration("cars", tmp_path / "root")
    (checked,) = remote_files(config, archives, url)
    told = io.StringIO()
    run(config, [checked], console=Console(file=told, width=1000))
    assert "unchecked" not in told.getvalue()
    unchecked = replace(checked, md5=None)
    run(config, [unchecked], console=Console(file=told, width=1000), again=True)
    assert "CARS196.zip is unchecked" in told.getvalue()


def test_a_broken_list_is_unpacked_again(published: Callable[[str], Published], tmp_path: Path) -> None:
    config, files, _ = published("cub")
    whole = run(config, files)
    (tmp_path / "root" / "CUB_200_2011" / "images.txt").write_text("")
    assert run(config, files).content_hash == whole.content_hash


def test_what_a_killed_run_unpacked_is_removed(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("cub")
    url, _ = serve(archives)
    config = configuration("cub", tmp_path / "root")
    name = "CUB_200_2011.tgz"
    copying = f"""
import os, signal
from pathlib import Path
from unseen.data.acquire import archive
archive._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
archive.unpack(Path({str(archives / name)!r}), Path({str(tmp_path / "root")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", copying], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = (tmp_path / "root").iterdir()
    own = tmp_path / "root" / f".{name}.mine"
    own.mkdir()
    run(config, remote_files(config, archives, url))
    assert not leftover.exists()
    assert own.exists()


def test_a_set_that_is_not_the_published_one_is_an_error_after_all(
    replica_archives: Callable[[str], Path], serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    archives = replica_archives("sop")
    url, _ = serve(archives)
    config = configuration("sop", tmp_path / "root")
    config.data.expected = {"train_images": 59551}
    with pytest.raises(ManifestError, match="Read 18 train images where 59,551 were published"):
        run(config, remote_files(config, archives, url))


def test_too_little_room_is_an_error_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    config = configuration("sop", tmp_path / "root")
    files = [RemoteFile(**file) for file in config.data.download.files]
    with pytest.raises(DownloadError, match=r"needs about 6.2 GB; 1.0 GB are free"):
        run(config, files)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".prepare.lock"]
    with (tmp_path / "root" / f"{files[0].name}.part").open("wb") as part:
        part.truncate(2 * 10**9)  # what an interrupted download left needs no room any more
    with pytest.raises(DownloadError, match=r"needs about 4.2 GB; 1.0 GB are free"):
        run(config, files)
