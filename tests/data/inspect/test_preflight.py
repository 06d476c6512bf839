"""Preflight: broken, odd and repeated images are found; others are not accused."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unseen.data.images import PassingError
from unseen.data.inspect import duplicates
from unseen.data.inspect.duplicates import near_duplicates
from unseen.data.inspect.preflight import preflight
from unseen.data.inspect.report import Report
from unseen.data.manifest import Manifest
from unseen.data.sources import folder


def picture(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """A smooth picture with colours, as different from other seeds as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Four classes of six pictures: `a` and `b` train, `c` and `d` test."""
    for position, name in enumerate("abcd"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for index in range(6):
            picture(10 * position + index).save(tmp_path / "tree" / name / f"{index}.png")
    return tmp_path / "tree"


def inspected(root: Path, **options: Any) -> Report:
    manifest = folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test")
    return inspect_manifest(manifest, **options)


def inspect_manifest(manifest: Manifest, **options: Any) -> Report:
    defaults = {
        "images_per_class": 4,
        "aspect": 4.0,
        "distance": 10,
        "difference": 0.1,
        "workers": 2,
        "allow": [],
    }
    return preflight(manifest, **(defaults | options))


def named(report: Report, groups: list[tuple[int, ...]]) -> list[list[str]]:
    return [[report.manifest.paths[row] for row in group] for group in groups]


def test_a_sound_set_has_no_findings(pictures: Path) -> None:
    told: list[int] = []
    report = inspected(pictures, progress=told.append)
    assert (report.broken, report.exact, report.near, report.small_classes) == ({}, [], [], {})
    assert not any(report.unusual.values())
    assert report.errors == []
    assert report.quarantine == []
    assert told == list(range(1, 25))


def test_every_kind_of_broken_file_is_named(pictures: Path) -> None:
    (pictures / "a" / "0.png").write_bytes(b"")
    (pictures / "a" / "1.png").write_bytes(b"<html>not found</html>")
    picture(100).save(pictures / "a" / "2.jpg")
    for name, share in (("2.jpg", 0.6), ("2.png", 0.5), ("3.png", 0.02)):
        whole = (pictures / "a" / name).read_bytes()
        (pictures / "a" / name).write_bytes(whole[: max(int(len(whole) * share), 40)])
    report = inspected(pictures)
    found = {report.manifest.paths[row]: what for row, what in report.broken.items()}
    assert found["a/0.png"] == "empty file (0 bytes)"
    assert found["a/1.png"] == "not an image"
    assert found["a/2.jpg"].startswith("truncated")
    assert sorted(found) == ["a/0.png", "a/1.png", "a/2.jpg", "a/2.png", "a/3.png"]
    assert report.quarantine == sorted(found)
    assert "check.allow=[unreadable]" in report.errors[0]
    assert inspected(pictures, allow=["unreadable"]).errors == []


def test_odd_images_are_listed_but_are_no_error(pictures: Path) -> None:
    picture(200).convert("CMYK").save(pictures / "a" / "cmyk.jpg")
    picture(201).convert("L").save(pictures / "b" / "grey.png")
    picture(202).convert("L").convert("RGB").save(pictures / "c" / "grey in colours.jpg")
    picture(203, (400, 20)).save(pictures / "d" / "long.png")
    picture(204, (20, 79)).save(pictures / "d" / "almost long.png")
    report = inspected(pictures)
    found = {kind: [report.manifest.paths[row] for row in rows] for kind, rows in report.unusual.items()}
    assert found == {
        "CMYK": ["a/cmyk.jpg"],
        "grey": ["b/grey.png", "c/grey in colours.jpg"],
        "extreme aspect": ["d/long.png"],
    }
    assert report.errors == []
    assert report.quarantine == []


def test_exact_duplicates_are_those_of_the_pixels_not_of_the_bytes(pictures: Path) -> None:
    picture(0).save(pictures / "a" / "same.bmp")
    picture(0).convert("RGBA").save(pictures / "b" / "opaque.png")
    report = inspected(pictures)
    assert named(report, report.exact) == [["a/0.png", "a/same.bmp", "b/opaque.png"]]
    assert report.near == []
    assert report.disagrees(report.exact[0])
    assert not report.crosses(report.exact[0])
    assert report.errors == []


def test_transparent_drawings_are_told_apart_by_what_shows(pictures: Path) -> None:
    """Their colours are black throughout; only the transparency differs."""
    for index, name in enumerate("cd"):
        drawing = np.zeros((60, 60, 4), dtype=np.uint8)
        drawing[10 + 20 * index : 20 + 20 * index, 10:50, 3] = 255
        Image.fromarray(drawing).save(pictures / name / "drawing.png")
    report = inspected(pictures)
    assert (report.exact, report.near) == ([], [])


def test_an_image_on_both_sides_is_an_error_unless_allowed(pictures: Path) -> None:
    picture(0).save(pictures / "c" / "copy.png")
    report = inspected(pictures)
    assert named(report, report.leaks) == [["a/0.png", "c/copy.png"]]
    assert report.quarantine == ["a/0.png"]  # the training copy: the test set stays what it is
    assert report.errors[0].startswith("1 images are in training and in test")
    assert inspected(pictures, allow=["leakage"]).errors == []
    # What the quarantine list takes out is what was wrong.
    (pictures / "a" / "0.png").unlink()
    assert inspected(pictures).errors == []


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("part", ["held_out", "validation"])
def test_what_is_held_out_of_training_is_compared_with_it(pictures: Path, part: str, suffix: str) -> None:
    """The same pixels must not choose the epoch; photographs of a class taken in one go are merely listed."""
    picture(0).save(pictures / "b" / f"copy.{suffix}", quality=60)
    manifest = folder.read(pictures, split="order", train_fraction=0.5, seed=0, listed="test")
    parts = np.where(manifest.roles == "train", "train", "test").astype("<U10")
    copied = [row for row, path in enumerate(manifest.paths) if path.startswith("b/")]
    parts[copied] = part
    report = inspect_manifest(manifest, parts=parts)
    assert named(report, [*report.exact, *report.near]) == [["a/0.png", f"b/copy.{suffix}"]]
    assert "| … across the split | 1 |" in report.markdown()
    assert f"({part}, b)" in report.markdown()
    if (part, suffix) == ("validation", "png"):
        assert report.errors[0].startswith("1 images are in training and in validation. Leave out")
        assert report.quarantine == ["a/0.png"]
        assert "**LEAK**" in report.markdown()
    else:
        assert (report.leaks, report.errors, report.quarantine) == ([], [], [])
    assert inspected(pictures).errors == [], "by the roles alone both are training"


@pytest.mark.parametrize("change", ["saved again", "smaller", "slightly cropped", "grey"])
def test_near_duplicates_survive_what_copies_suffer(pictures: Path, change: str) -> None:
    original = picture(5)
    copies = {
        "saved again": original,
        "smaller": original.resize((120, 96)),
        "slightly cropped": original.crop((2, 1, 200, 160)),
        "grey": original.convert("L"),
    }
    copies[change].save(pictures / "d" / "copy.jpg", quality=60)
    report = inspected(pictures)
    assert report.exact == []
    # A copy without its colours is another image to the small copies, though not to the hash.
    assert named(report, report.near) == ([] if change == "grey" else [["a/5.png", "d/copy.jpg"]])


def boxed(root: Path, boxes: list[list[int]]) -> Manifest:
    """One picture; its first objects train, the last tests."""
    picture(0).save(root / "one.png")
    labels = np.arange(len(boxes))
    roles = np.where(labels < len(boxes) - 1, "train", "test")
    names = tuple(f"class {label}" for label in labels)
    return Manifest(root, ("one.png",) * len(boxes), labels, names, roles, boxes=np.array(boxes))


def test_objects_of_one_picture_are_looked_at_as_training_cuts_them(tmp_path: Path) -> None:
    manifest = boxed(tmp_path, [[0, 0, 90, 80], [300, 0, 400, 80], [100, 70, 200, 160]])
    cut = inspect_manifest(manifest, crop_to_box=True)
    assert cut.broken.keys() == {1}
    assert "box (300, 0, 400, 80)" in cut.broken[1]
    assert (cut.exact, cut.near) == ([], [])
    whole = inspect_manifest(manifest)
    assert whole.broken == {}
    assert whole.exact == whole.leaks == [(0, 1, 2)]


def test_a_picture_that_holds_test_objects_is_not_quarantined_for_a_leak(tmp_path: Path) -> None:
    """The list names pictures, and without this one the test set would be another."""
    report = inspect_manifest(boxed(tmp_path, [[0, 0, 90, 80], [100, 70, 200, 160]]))
    assert report.leaks == [(0, 1)]
    assert report.quarantine == []


def test_a_passing_failure_is_not_reported_as_a_broken_image(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(PassingError, match="not the image"):
        inspected(pictures)


def test_drawings_of_one_outline_are_not_near_duplicates(tmp_path: Path) -> None:
    """Strokes on white: hashes are alike, but the strokes lie apart."""
    for position, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        for index in range(3):
            drawing = np.full((100, 100), 255, dtype=np.uint8)
            start = 5 + 22 * position + 7 * index
            drawing[start : start + 2, 20:80] = 0
            Image.fromarray(drawing).save(tmp_path / name / f"{index}.png")
    report = inspected(tmp_path, distance=20)
    assert report.near == []


def test_classes_that_are_too_small_are_named(pictures: Path) -> None:
    for index in range(3):
        (pictures / "a" / f"{index}.png").unlink()
    for index in range(5):
        (pictures / "d" / f"{index}.png").unlink()
    report = inspected(pictures)
    assert report.small_classes["a"].startswith("3 to train on, 4 wanted")
    assert report.small_classes["d"].startswith("one test image")
    assert report.errors == []


def test_queries_without_gallery_are_named(tmp_path: Path) -> None:
    paths, labels, roles = ("t.png", "q.png", "g.png"), [0, 1, 2], ["train", "query", "gallery"]
    for seed, path in enumerate(paths):
        picture(seed).save(tmp_path / path)
    manifest = Manifest(tmp_path, paths, np.array(labels), ("seen", "lost", "found"), np.array(roles))
    report = preflight(
        manifest, images_per_class=1, aspect=4.0, distance=4, difference=0.1, workers=1, allow=()
    )
    assert report.small_classes == {"lost": "no gallery image: its queries find nothing"}


def test_the_report_is_written_for_people_and_for_programs(pictures: Path, tmp_path: Path) -> None:
    picture(0).save(pictures / "c" / "copy.png")
    (pictures / "b" / "0.png").write_bytes(b"")
    report = inspected(pictures)
    report.write(tmp_path / "out" / "deep")
    assert sorted(path.name for path in (tmp_path / "out" / "deep").iterdir()) == [
        "quarantine.txt",
        "report.json",
        "report.md",
    ]
    assert (tmp_path / "out" / "deep" / "quarantine.txt").read_text() == "a/0.png\nb/0.png\n"
    plain = json.loads((tmp_path / "out" / "deep" / "report.json").read_text())
    assert plain["broken"] == {"b/0.png": "empty file (0 bytes)"}
    assert plain["exact_duplicates"] == [
        {"paths": ["a/0.png", "c/copy.png"], "across_split": True, "leak": True, "across_classes": True}
    ]
    text = (tmp_path / "out" / "deep" / "report.md").read_text()
    assert "**LEAK** **labels differ** `a/0.png` (train, a) = `c/copy.png` (test, c)" in text
    assert "| unreadable | 1 |" in text


def test_long_lists_are_cut_in_the_readable_report_only(pictures: Path, tmp_path: Path) -> None:
    for index in range(60):
        picture(300 + index).convert("L").save(pictures / "a" / f"grey {index}.png")
    report = inspected(pictures)
    assert "- … and 10 more, in `report.json`" in report.markdown()
    assert len(report.plain()["unusual"]["grey"]) == 60  # type: ignore[index]


def test_an_unknown_allowance_is_refused_before_anything_is_decoded(pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"check\.allow names 'leak'\. Choose from unreadable, leakage"):
        inspected(pictures, allow=["leak"], progress=lambda done: pytest.fail("decoded"))


@pytest.mark.parametrize(("bits", "found"), [(3, [(0, 1)]), (4, [])])
def test_the_distance_is_the_most_that_is_allowed(bits: int, found: list[tuple[int, int]]) -> None:
    hashes = np.array([0, (1 << bits) - 1], dtype=np.uint64)
    thumbnails = np.tile(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3), (2, 1, 1, 1))
    assert near_duplicates(hashes, thumbnails, 3, 0.1) == found


def test_many_copies_of_one_look_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand white pages make fifty million pairs, which would take minutes and gigabytes."""
    counts: list[int] = []
    pairs = duplicates._close_pairs

    def counting(hashes: Any, distance: int) -> Any:
        counts.append(len(hashes))
        return pairs(hashes, distance)

    monkeypatch.setattr(duplicates, "_close_pairs", counting)
    hashes = np.full(10_001, 1 << 63, dtype=np.uint64)
    hashes[5000] = 0xFFFF
    thumbnails = np.full((10_001, 16, 16, 3), 255, dtype=np.uint8)
    groups = near_duplicates(hashes, thumbnails, 10, 0.1)
    assert groups == [tuple(index for index in range(10_001) if index != 5000)]
    assert counts == [2]


def test_links_found_in_different_blocks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    chain = np.array([(1 << bits) - 1 for bits in (0, 9, 3, 12, 6, 40)], dtype=np.uint64)
    pattern = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert near_duplicates(chain, np.tile(pattern, (6, 1, 1, 1)), 3, 0.1) == [(0, 1, 2, 3, 4)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 40), distance=st.integers(0, 12))
def test_near_duplicates_are_the_components_that_a_double_loop_finds(
    seed: int, count: int, distance: int
) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**63, count, dtype=np.uint64)
    thumbnails = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    for position in range(1, count):  # copies with a few bits and levels changed
        if generator.random() < 0.4:
            origin = generator.integers(position)
            flipped = np.uint64(sum(1 << int(bit) for bit in set(generator.integers(0, 64, 6).tolist())))
            hashes[position] = hashes[origin] ^ flipped
            noise = generator.integers(-12, 13, (4, 4, 3))
            thumbnails[position] = np.clip(thumbnails[origin] + noise, 0, 255)
    component = list(range(count))
    for first in range(count):
        for second in range(first + 1, count):
            bits = (int(hashes[first]) ^ int(hashes[second])).bit_count()
            a, b = (thumbnails[index].astype(float).ravel() for index in (first, second))
            weaker = min(np.linalg.norm(a - a.mean()), np.linalg.norm(b - b.mean()))
            if bits <= distance and np.linalg.norm(a - b) <= 0.1 * weaker:
                old, new = component[second], component[first]
                component = [new if label == old else label for label in component]
    wanted = {tuple(index for index in range(count) if component[index] == label) for label in set(component)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", 7)
        got = near_duplicates(hashes, thumbnails, distance, 0.1)
    assert set(got) == {group for group in wanted if len(group) > 1}


@pytest.mark.slow
def test_flowers_hold_four_exact_duplicates(tmp_path: Path) -> None:
    data = os.environ.get("UNSEEN_TEST_DATA")
    if data is None:
        pytest.skip("UNSEEN_TEST_DATA names no folder of real images")
    with tarfile.open(Path(data) / "flowers102_128.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    report = inspected(tmp_path)
    assert (len(report.manifest), len(report.broken), len(report.exact)) == (8189, 0, 4)
    assert report.leaks == []
    # The same photograph under two labels, saved twice.
    assert ["093/image_07303.jpg", "094/image_07304.jpg"] in named(report, report.near)
