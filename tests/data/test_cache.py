"""Decoded images are kept as they were decoded, made once, and made anew when anything about them changed."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image

from unseen.data import cache
from unseen.data.cache import CacheError, MemoryMapped, in_memory, memory_mapped, shrink, uncached
from unseen.data.images import Files, ImageError, PassingError
from unseen.data.manifest import Manifest

SIZES = ((40, 30), (20, 64), (8, 9), (33, 33), (16, 50), (70, 17))


def manifest_of(root: Path, boxes: Any = None) -> Manifest:
    names = tuple(f"{index}.png" for index in range(len(SIZES)))
    roles = np.array(["train"] * 3 + ["test"] * 3)
    return Manifest(root, names, np.array([0, 0, 0, 1, 1, 1]), ("a", "b"), roles, boxes=boxes)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    root = tmp_path / "images"
    root.mkdir()
    for index, size in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return manifest_of(root)


@pytest.fixture
def opened(manifest: Manifest, tmp_path: Path) -> Callable[..., MemoryMapped]:
    def open_(**changes: Any) -> MemoryMapped:
        arguments = {"short_side": 16, "keep_going": False, "folder": tmp_path / "cache"} | changes
        files = arguments.pop("images", Files(manifest))
        return memory_mapped(files, **arguments)

    return open_


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows, as they are decoded."""
    rows: list[int] = []
    read = Files.__getitem__

    def counting(files: Files, row: int) -> Any:
        rows.append(row)
        return read(files, row)

    monkeypatch.setattr(Files, "__getitem__", counting)
    return rows


def assert_same(images: Any, others: Any, count: int = len(SIZES)) -> None:
    for row in range(count):
        np.testing.assert_array_equal(images[row], others[row])


@pytest.mark.parametrize(
    ("shape", "smaller"), [((40, 30), (21, 16)), ((20, 64), (16, 51)), ((16, 16), (16, 16))]
)
def test_shrinking_keeps_the_aspect_as_torchvision_does(
    shape: tuple[int, int], smaller: tuple[int, int]
) -> None:
    from torchvision.transforms import v2

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shrunk = shrink(image, 16)
    assert shrunk.shape == (*smaller, 3)
    resized = np.asarray(v2.Resize(16, antialias=True)(Image.fromarray(image)))
    np.testing.assert_array_equal(shrunk, resized)


def test_small_images_are_not_blown_up() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shrink(image, 16), image)


def test_all_caches_give_what_decoding_gives(manifest: Manifest, opened: Callable[..., MemoryMapped]) -> None:
    files = Files(manifest)
    expected = [shrink(files[row], 16) for row in range(len(SIZES))]
    arguments: dict[str, Any] = {"short_side": 16, "keep_going": False, "folder": Path("/nowhere")}
    assert_same(in_memory(files, **arguments), expected)
    assert_same(opened(), expected)
    assert_same(opened(short_side=4096), files)
    assert_same(uncached(files, **arguments), files)


def test_boxes_are_cut_before_shrinking(manifest: Manifest, opened: Callable[..., MemoryMapped]) -> None:
    boxes = np.tile([1, 2, 9, 8], (len(SIZES), 1))
    cut = opened(images=Files(manifest_of(manifest.root, boxes)))
    whole = opened()
    np.testing.assert_array_equal(cut[0], Files(manifest)[0][2:8, 1:9])
    assert whole[0].shape == (21, 16, 3)


def test_a_second_opening_decodes_nothing(opened: Callable[..., MemoryMapped], decodings: list[int]) -> None:
    first = opened()
    assert sorted(decodings) == list(range(len(SIZES)))
    assert_same(opened(), first)
    assert len(decodings) == len(SIZES)


def test_other_labels_and_roles_share_the_file_and_other_pixels_do_not(
    manifest: Manifest, opened: Callable[..., MemoryMapped], tmp_path: Path
) -> None:
    whole = opened()
    roles = np.array(["test"] * 3 + ["train"] * 3)
    relabelled = Manifest(manifest.root, manifest.paths, manifest.labels, ("x", "y"), roles)
    assert opened(images=Files(relabelled)).path == whole.path
    paths = {whole.path, opened(short_side=8).path, opened(images=Files(manifest.select([2, 1, 3]))).path}
    assert len(paths) == 3
    (tmp_path / "elsewhere").symlink_to(tmp_path / "images")
    assert opened(images=Files(manifest_of(tmp_path / "elsewhere"))).path == whole.path


def test_changes_to_an_image_do_not_reach_the_file(opened: Callable[..., MemoryMapped]) -> None:
    images = opened()
    before, image = images.path.read_bytes(), images[0].copy()
    images[0][:] = 0
    np.testing.assert_array_equal(images[0], image)
    assert images.path.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists mappings there")
def test_the_file_is_mapped_for_reading_only(opened: Callable[..., MemoryMapped]) -> None:
    """Anything else counts as memory, and a file larger than that could not be opened."""
    images = opened()
    [line] = [line for line in Path("/proc/self/maps").read_text().splitlines() if images.path.name in line]
    assert line.split()[1] == "r--s"
    assert images[0].flags.writeable


def test_changed_files_are_decoded_again(
    manifest: Manifest,
    opened: Callable[..., MemoryMapped],
    decodings: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = opened()
    kept = old[3].copy()
    Image.new("RGB", (33, 33), (1, 2, 3)).save(manifest.absolute(3))
    with caplog.at_level(logging.INFO):
        new = opened()
    assert "stale: image files have changed" in caplog.text
    assert len(decodings) == 2 * len(SIZES)
    assert new.path == old.path
    assert (new[3] == (1, 2, 3)).all()
    np.testing.assert_array_equal(old[3], kept)  # a run that goes on keeps what it opened


def test_files_that_change_places_are_decoded_again(
    manifest: Manifest, opened: Callable[..., MemoryMapped]
) -> None:
    one, other, aside = manifest.absolute(0), manifest.absolute(1), manifest.root / "aside.png"
    for path, grey in ((one, 10), (other, 200)):
        Image.new("RGB", (33, 33), (grey, grey, grey)).save(path)
        os.utime(path, ns=(1, 1))
    assert one.stat().st_size == other.stat().st_size
    assert opened()[0].mean() == 10
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    assert opened()[0].mean() == 200


def test_a_file_of_another_version_is_made_again(
    opened: Callable[..., MemoryMapped],
    decodings: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = opened()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    with caplog.at_level(logging.INFO):
        assert opened().path == first.path
    assert "another version" in caplog.text
    opened()
    assert len(decodings) == 2 * len(SIZES)


@pytest.mark.parametrize("keep", [0, 1, 15, 16, 200, 0.5, -1, -9, -40])
def test_a_truncated_file_is_made_again_wherever_it_ends(
    opened: Callable[..., MemoryMapped], keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = opened().path
    whole = path.read_bytes()
    length = int(len(whole) * keep) if isinstance(keep, float) else keep if keep >= 0 else len(whole) + keep
    path.write_bytes(whole[:length])
    with caplog.at_level(logging.INFO):
        assert_same(opened(), opened())
    assert "is broken" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["longer", "hole", "other", "description"])
def test_a_file_that_something_else_wrote_is_made_again(
    opened: Callable[..., MemoryMapped], damage: str
) -> None:
    path = opened().path
    whole = path.read_bytes()
    spoilt = {
        "longer": b"more" + whole,
        "hole": whole[:100] + whole[200:],
        "other": b"PK" * 400,
        "description": whole[:-30] + b"?" * 14 + whole[-16:],
    }
    path.write_bytes(spoilt[damage])
    opened()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("fits", [True, False])
def test_more_images_than_memory_holds_are_refused_early(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    many = manifest.select([0] * 200)
    needed = 200 * 40 * 30 * 3
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed - (not fits)))
    arguments: dict[str, Any] = {"short_side": 64, "keep_going": False, "folder": Path("/nowhere")}
    if fits:
        assert len(in_memory(Files(many), **arguments).images) == 200
        return
    with pytest.raises(CacheError, match=r"data\.cache=ram: 200 decoded images .* data\.cache=memmap"):
        in_memory(Files(many), **arguments)


def spoil(manifest: Manifest, *rows: int) -> None:
    for row in rows:
        manifest.absolute(row).write_bytes(b"no image")


def test_an_unreadable_image_stops_it_and_leaves_nothing_behind(
    manifest: Manifest, opened: Callable[..., MemoryMapped], tmp_path: Path
) -> None:
    spoil(manifest, 4)
    with pytest.raises(ImageError, match=r"4\.png"):
        opened()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])
    with pytest.raises(ImageError, match=r"4\.png"):
        in_memory(Files(manifest), short_side=16, keep_going=False, folder=tmp_path)


def test_unreadable_images_are_noted_and_the_note_is_kept(
    manifest: Manifest, opened: Callable[..., MemoryMapped], tmp_path: Path, decodings: list[int]
) -> None:
    whole = opened()
    spoil(manifest, 1, 4)
    found = [
        uncached(Files(manifest), short_side=16, keep_going=True, folder=tmp_path),
        in_memory(Files(manifest), short_side=16, keep_going=True, folder=tmp_path),
        opened(keep_going=True),
    ]
    decodings.clear()
    found += [opened(keep_going=True), opened(keep_going=False)]
    assert decodings == []
    for images in found:
        assert images.problems.keys() == {1, 4}
        assert "1.png" in images.problems[1]
    for images in found[1:]:
        for row in (0, 2, 3, 5):
            np.testing.assert_array_equal(images[row], whole[row])


def test_a_passing_failure_stops_skipping_too_and_is_not_kept(
    opened: Callable[..., MemoryMapped], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def too_many(*_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patch.setattr(Image, "open", too_many)
        with pytest.raises(PassingError, match="Too many open files"):
            opened(keep_going=True)
    assert opened(keep_going=True).problems == {}


def test_that_no_image_can_be_read_is_an_error_even_when_skipping(
    manifest: Manifest, opened: Callable[..., MemoryMapped], tmp_path: Path
) -> None:
    spoil(manifest, *range(len(SIZES)))
    for open_ in (
        opened,
        lambda **_: in_memory(Files(manifest), short_side=9, keep_going=True, folder=tmp_path),
    ):
        with pytest.raises(ImageError, match=r"None of the 6 images can be read"):
            open_(keep_going=True)


def test_what_a_killed_process_left_is_cleared(opened: Callable[..., MemoryMapped], tmp_path: Path) -> None:
    path = opened().path
    path.unlink()
    leftover = path.with_name(f".{path.stem}.99999.pixels")
    leftover.write_bytes(b"half")
    other = path.with_name(".0123.99999.pixels")
    other.write_bytes(b"another's")
    opened()
    assert not leftover.exists()
    assert other.exists()


def test_a_folder_that_cannot_be_written_is_named_with_remedies(
    opened: Callable[..., MemoryMapped], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"data\.cache_dir.*data\.cache=none.*taken"):
        opened(folder=tmp_path / "taken")


def test_a_full_disk_is_named_with_remedies_and_leaves_nothing(
    opened: Callable[..., MemoryMapped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*data\.cache=none"):
        opened()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_another_process_opens_it_for_itself(opened: Callable[..., MemoryMapped]) -> None:
    images = opened()
    sent = pickle.dumps(images)
    assert len(sent) < 2000
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())[2].sum())"
    run = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert int(run.stdout) == images[2].sum()


RUN = """
import logging, sys, time
from pathlib import Path
from unseen.data.cache import memory_mapped
from unseen.data.images import Files
from unseen.data.manifest import Manifest
logging.basicConfig(level=logging.INFO)
root = Path(sys.argv[1])
read = Files.__getitem__
def slow(files, row):
    with (root / "decoded.txt").open("a") as file:
        file.write(f"{row}\\n")
    time.sleep(0.1)
    return read(files, row)
Files.__getitem__ = slow
(root / f"ready{sys.argv[2]}").touch()
while not (root / "go").exists():
    time.sleep(0.005)
manifest = Manifest.load(root / "manifest.csv")
images = memory_mapped(Files(manifest), short_side=16, keep_going=False, folder=root / "cache")
print(sum(int(images[row].sum()) for row in range(len(manifest))))
"""


def test_two_first_runs_at_once_decode_once(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "manifest.csv")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in range(2)
    ]
    while not all((tmp_path / f"ready{number}").exists() for number in range(2)):
        assert all(run.poll() is None for run in runs), runs[0].stderr
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted((tmp_path / "decoded.txt").read_text().split()) == [str(row) for row in range(len(SIZES))]
    expected = sum(int(shrink(Files(manifest)[row], 16).sum()) for row in range(len(SIZES)))
    assert [out.strip() for out, _ in outputs] == [str(expected)] * 2
    assert sum("waiting for it" in log for _, log in outputs) == 1


def test_a_finished_file_needs_no_lock(opened: Callable[..., MemoryMapped], decodings: list[int]) -> None:
    path = opened().path
    decodings.clear()
    with FileLock(path.with_suffix(".lock")):
        opened()
    assert decodings == []
