"""Feature maps come back as they were written, are computed once, and no half of them is ever read."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from unseen.data.maps import MapFile, MapsError, Rows, bytes_of, check_room, kept_maps, missing_bytes

SHAPES = {"first": (3, 4, 5), "final": (2, 1, 1)}
ROWS = np.array([2, 3, 5, 8, 13, 21, 34])
BATCH = 2


def maps_of(rows: Rows) -> list[torch.Tensor]:
    """Another array for each row of the manifest."""
    drawn = [np.random.default_rng(row) for row in rows.tolist()]
    return [
        torch.from_numpy(np.stack([one.normal(size=shape) for one in drawn])).float()
        for shape in SHAPES.values()
    ]


def compute(rows: Rows) -> Iterator[list[torch.Tensor]]:
    for start in range(0, len(rows), BATCH):
        yield maps_of(rows[start : start + BATCH])


def kept(folder: Path, computed: Callable[..., Iterator[list[torch.Tensor]]] = compute) -> MapFile:
    return kept_maps(folder, "key", ROWS, SHAPES, computed)


def never(rows: Rows) -> Iterator[list[torch.Tensor]]:
    raise AssertionError("nothing is left to compute")


def assert_whole(found: MapFile) -> None:
    for asked in (ROWS, ROWS[::-1].copy(), np.array([5, 5, 2])):
        for one, wanted in zip(found.maps(asked).values(), maps_of(asked), strict=True):
            assert torch.equal(one, wanted)


def test_maps_of_any_rows_in_any_order_are_what_was_computed(tmp_path: Path) -> None:
    found = kept(tmp_path)
    assert list(found.maps(ROWS)) == list(SHAPES)
    assert_whole(found)
    assert found.path.stat().st_size == bytes_of(len(ROWS), SHAPES) == 7 * 4 * (3 * 4 * 5 + 2)
    assert found.covers(np.array([34, 2]))
    assert not found.covers(np.array([2, 4]))
    assert_whole(kept(tmp_path, never))


def test_a_batch_of_maps_may_be_written_to(tmp_path: Path) -> None:
    found = kept(tmp_path)
    found.maps(ROWS)["first"].zero_()
    assert_whole(found)


@pytest.mark.parametrize("torn", [b"", b"half a row"])
def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path: Path, torn: bytes) -> None:
    def stops(rows: Rows) -> Iterator[list[torch.Tensor]]:
        yield from list(compute(rows))[:2]
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        kept(tmp_path, stops)
    assert not list(tmp_path.glob("*.maps"))
    with (tmp_path / "key.partial").open("ab") as file:
        file.write(torn)
    asked: list[int] = []

    def watched(rows: Rows) -> Iterator[list[torch.Tensor]]:
        asked.extend(rows.tolist())
        yield from compute(rows)

    assert_whole(kept(tmp_path, watched))
    assert asked == ROWS[4:].tolist()


def test_a_file_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    path = kept(tmp_path).path
    path.write_bytes(path.read_bytes()[:-1])
    assert_whole(kept(tmp_path))


def test_of_two_processes_at_once_one_computes(
    tmp_path: Path, on_ranks: Callable[..., list[dict[str, torch.Tensor]]]
) -> None:
    def work(rank: int, world: int) -> dict[str, torch.Tensor]:
        def watched(rows: Rows) -> Iterator[list[torch.Tensor]]:
            (tmp_path / f"computed by {rank}").touch()
            time.sleep(0.2)  # so that the other one comes meanwhile
            yield from compute(rows)

        torch.distributed.barrier()
        return kept(tmp_path / "maps", watched).maps(ROWS)

    for found in on_ranks(2, work):
        for one, wanted in zip(found.values(), maps_of(ROWS), strict=True):
            assert torch.equal(one, wanted)
    assert len(list(tmp_path.glob("computed by *"))) == 1


def test_a_disk_without_room_is_refused_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 3 * 2**20))
    folder = tmp_path / "not yet" / "there"
    check_room(folder, 3 * 2**20)
    with pytest.raises(
        MapsError, match=r"take 5\.0 GiB more, and 3\.0 MiB are free in '.*there'.*data\.cache_dir"
    ):
        check_room(folder, 5 * 2**30)


def test_only_what_is_not_there_yet_needs_room(tmp_path: Path) -> None:
    whole, half = bytes_of(len(ROWS), SHAPES), bytes_of(3, SHAPES)
    assert missing_bytes(tmp_path, "key", len(ROWS), SHAPES) == whole
    (tmp_path / "key.partial").write_bytes(bytes(half))
    assert missing_bytes(tmp_path, "key", len(ROWS), SHAPES) == whole - half
    kept(tmp_path)
    assert missing_bytes(tmp_path, "key", len(ROWS), SHAPES) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MapsError, match=r"cannot be kept in '.*file'\. .* data\.cache_dir=<folder>"):
        kept(tmp_path / "file", never)
