"""Splits are class-disjoint, complete, and the same everywhere."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.split import Split, fixed, folds, holdout

FINGERPRINT = "59ab580e825159c94237c4f06b0b4b92f3ef1164736ad99db2c4ffdeff495564"
FIRST_DRAWN = [0, 1, 4, 6, 9]
PARTS = ("train", "held_out", "validation", "query", "gallery")


def table(sizes: list[int], test_sizes: list[int], roles: tuple[str, ...] = ("test",)) -> Manifest:
    """Classes of the given sizes; images of test classes take the roles in turn."""
    labels, kinds = [], []
    for label, size in enumerate(sizes + test_sizes):
        labels += [label] * size
        kinds += ["train" if label < len(sizes) else roles[i % len(roles)] for i in range(size)]
    names = tuple(f"class {label}" for label in range(len(sizes + test_sizes)))
    paths = tuple(f"{names[label]}/{row}.jpg" for row, label in enumerate(labels))
    return Manifest(Path("images"), paths, np.array(labels), names, np.array(kinds))


def classes_of(split: Split, part: str) -> set[int]:
    return set(split.manifest.labels[getattr(split, part)].tolist())


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=12),
    test_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    held_out_fraction=st.floats(0, 0.9),
    class_fraction=st.floats(0.01, 0.99),
)
def test_every_image_has_one_part_and_no_class_two(
    sizes: list[int], test_sizes: list[int], seed: int, held_out_fraction: float, class_fraction: float
) -> None:
    manifest = table(sizes, test_sizes)
    split = holdout(manifest, seed=seed, held_out_fraction=held_out_fraction, class_fraction=class_fraction)
    rows = np.concatenate([split.train, split.held_out, split.validation, split.query])
    assert sorted(rows.tolist()) == list(range(len(manifest)))
    assert split.query_is_gallery
    train, validation, test = (classes_of(split, part) for part in ("train", "validation", "query"))
    assert not train & validation
    assert not (train | validation) & test
    assert classes_of(split, "held_out") <= train
    assert len(train) == split.num_classes == len(sizes) - len(validation)
    assert len(validation) == min(max(1, round(class_fraction * len(sizes))), len(sizes) - 1)
    for part in PARTS:
        assert np.all(np.diff(getattr(split, part)) > 0)


@pytest.mark.parametrize(("size", "held"), [(3, 0), (4, 2), (7, 2), (8, 4), (20, 4), (40, 6), (100, 15)])
def test_held_out_images_are_a_share_and_at_least_four_where_four_remain(size: int, held: int) -> None:
    split = fixed(table([size], [2]), seed=0, held_out_fraction=0.15)
    assert (len(split.train), len(split.held_out)) == (size - held, held)
    assert len(fixed(table([size], [2]), seed=0, held_out_fraction=0).held_out) == 0


@pytest.mark.parametrize(("size", "held"), [(10, 6), (5, 3), (40, 36)])
def test_a_large_share_leaves_what_a_class_needs(size: int, held: int) -> None:
    assert len(fixed(table([size], [2]), seed=0, held_out_fraction=0.9).held_out) == held


def test_small_classes_are_not_robbed_of_a_third_of_their_images(caplog: pytest.LogCaptureFixture) -> None:
    """Two of five images are 40 %: some classes give two, others none; the draw is the same anywhere."""
    manifest = table([5] * 400, [2])
    with caplog.at_level(logging.INFO):
        split = fixed(manifest, seed=0, held_out_fraction=0.15)
    assert len(split.held_out) == 300
    assert set(Counter(manifest.labels[split.held_out].tolist()).values()) == {2}
    assert split.num_classes == 400
    assert "150 of 400 classes hold 300 of 2000 images out (15.0 %)" in caplog.text
    assert sorted(classes_of(split, "held_out"))[:5] == FIRST_DRAWN
    assert not np.array_equal(fixed(manifest, seed=1, held_out_fraction=0.15).held_out, split.held_out)
    order = np.random.default_rng(0).permutation(len(manifest))
    shuffled = fixed(manifest.select(order), seed=0, held_out_fraction=0.15)
    assert classes_of(shuffled, "held_out") == classes_of(split, "held_out")


@pytest.mark.parametrize(("size", "classes"), [(18, 100), (17, 64), (60, 100)])
def test_classes_are_left_whole_only_where_the_share_is_exceeded_by_half(size: int, classes: int) -> None:
    """Four of eighteen are 22.2 % and just below; four of seventeen are 23.5 %."""
    split = fixed(table([size] * 100, [2]), seed=0, held_out_fraction=0.15)
    assert len(classes_of(split, "held_out")) == classes


@given(
    sizes=st.lists(st.integers(8, 40), min_size=2, max_size=30),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_classes_of_eight_and_more_hold_out_four_and_keep_four(
    sizes: list[int], fraction: float, seed: int
) -> None:
    """R-precision and MAP@R of two images are R@1; the held-out share still stays near what was asked for."""
    split = fixed(table(sizes, [2]), seed=seed, held_out_fraction=fraction)
    held, kept = (Counter(split.manifest.labels[rows].tolist()) for rows in (split.held_out, split.train))
    assert held, "some class always gives"
    assert min(held.values()) >= 4
    assert all(kept[label] >= 4 for label in range(len(sizes)))
    assert len(split.held_out) <= 1.5 * fraction * sum(sizes) + max(held.values())


def test_every_row_knows_its_part() -> None:
    split = holdout(table([6] * 5, [2]), seed=7, held_out_fraction=0.3, class_fraction=0.4)
    for part in ("train", "held_out", "validation"):
        assert np.flatnonzero(split.parts == part).tolist() == getattr(split, part).tolist()
    assert np.flatnonzero(split.parts == "test").tolist() == split.query.tolist()
    official = fixed(table([4], [4], roles=("query", "gallery")), seed=0, held_out_fraction=0)
    assert official.parts.tolist() == ["train"] * 4 + ["test"] * 4


def test_official_query_and_gallery_are_kept_apart() -> None:
    manifest = table([4, 4], [4, 6], roles=("query", "gallery"))
    split = fixed(manifest, seed=0, held_out_fraction=0)
    assert set(manifest.roles[split.query]) == {"query"}
    assert set(manifest.roles[split.gallery]) == {"gallery"}
    assert not split.query_is_gallery
    assert len(split.validation) == 0


@given(count=st.integers(2, 20), seed=st.integers(0, 99), data=st.data())
def test_folds_partition_the_training_classes(count: int, seed: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(2, count))
    manifest = table([3] * count, [2])
    draw = functools.partial(folds, manifest, seed=seed, held_out_fraction=0, folds=number)
    splits = [draw(fold=fold) for fold in range(number)]
    validations = [classes_of(split, "validation") for split in splits]
    assert sum(map(len, validations)) == count
    assert set.union(*validations) == set(range(count))
    assert max(map(len, validations)) - min(map(len, validations)) <= 1
    for split, validation in zip(splits, validations, strict=True):
        assert classes_of(split, "train") == set(range(count)) - validation


def test_seen_labels_are_contiguous_over_the_training_classes() -> None:
    manifest = table([5] * 6, [3])
    split = holdout(manifest, seed=3, held_out_fraction=0.4, class_fraction=0.5)
    labels = split.seen_labels(manifest.labels[split.train])
    assert set(labels.tolist()) == set(range(split.num_classes)) == {0, 1, 2}
    # One to one, and the same for held-out images.
    for part in (split.train, split.held_out):
        pairs = zip(split.seen_labels(manifest.labels[part]), manifest.labels[part], strict=True)
        assert len(set(pairs)) == 3
    stranger = manifest.labels[split.validation[:1]]
    with pytest.raises(ManifestError, match=rf"'class {stranger[0]}' has no training images"):
        split.seen_labels(stranger)


def test_the_draw_is_written_down() -> None:
    """On any system and in any version: these rows were drawn once, and stay."""
    split = holdout(table([6] * 5, [2]), seed=7, held_out_fraction=0.3, class_fraction=0.4)
    assert sorted(classes_of(split, "validation")) == [1, 4]
    assert split.held_out.tolist() == [2, 5, 15, 16, 19, 21]
    assert split.fingerprint == FINGERPRINT


def test_the_draw_does_not_hang_on_the_order_of_rows() -> None:
    manifest = table([6] * 5, [2])
    order = np.random.default_rng(0).permutation(len(manifest))
    kept = []
    for rows in (np.arange(len(manifest)), order):
        split = holdout(manifest.select(rows), seed=7, held_out_fraction=0.3, class_fraction=0.4)
        kept.append({part: {split.manifest.paths[row] for row in getattr(split, part)} for part in PARTS})
    assert kept[0] == kept[1]


def test_fingerprints_differ_where_splits_do() -> None:
    manifest = table([6] * 5, [2, 2])
    arguments = {"seed": 0, "held_out_fraction": 0.3, "class_fraction": 0.4}
    first = holdout(manifest, **arguments)
    assert first.fingerprint == holdout(manifest, **arguments).fingerprint
    elsewhere = replace(manifest, root=Path("elsewhere"))
    assert first.fingerprint == holdout(elsewhere, **arguments).fingerprint
    for change in ({"seed": 1}, {"held_out_fraction": 0.5}, {"class_fraction": 0.6}):
        assert holdout(manifest, **arguments | change).fingerprint != first.fingerprint
    # The same rows in other parts, and the same parts of another table.
    swapped = replace(first, held_out=first.train, train=first.held_out)
    renamed = replace(manifest, class_names=("other", *manifest.class_names[1:]))
    assert (
        len({first.fingerprint, swapped.fingerprint, fixed(renamed, seed=0, held_out_fraction=0).fingerprint})
        == 3
    )


def test_a_process_with_another_hash_seed_draws_the_same(tmp_path: Path) -> None:
    table([6] * 5, [2]).save(tmp_path / "manifest.csv")
    code = (
        "import sys; from pathlib import Path; from unseen.data.manifest import Manifest;"
        "from unseen.data.split import holdout;"
        "manifest = Manifest.load(Path(sys.argv[1]));"
        "print(holdout(manifest, seed=7, held_out_fraction=0.3, class_fraction=0.4).fingerprint)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "manifest.csv")],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {FINGERPRINT}


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": rows(4)}, "1 classes are in train and validation: 'class 1'"),
        ({"query": rows(0, 9)}, "in train and test: 'class 0'"),
        ({"gallery": rows(7, 9)}, "in validation and test: 'class 2'"),
        ({"held_out": rows(0, 1)}, "1 images are in train and in held_out; the first is 'class 0/0.jpg'"),
        ({"held_out": rows(9)}, "'class 3' has no training images"),
        ({"train": rows()}, "leaves no train images"),
        ({"query": rows()}, "leaves no query images"),
        ({"gallery": rows()}, "leaves no gallery images"),
    ],
)
def test_parts_that_touch_are_refused_by_name(changes: dict[str, NDArray[np.int64]], words: str) -> None:
    manifest = table([3, 3, 3], [3])
    parts = {
        "train": rows(0, 3),
        "held_out": rows(1),
        "validation": rows(7),
        "query": rows(9),
        "gallery": rows(9),
    }
    Split(manifest, **parts)
    with pytest.raises(ManifestError, match=words):
        Split(manifest, **parts | changes)


def test_values_out_of_range_are_refused_by_key() -> None:
    manifest = table([3, 3, 3], [3])
    common = {"seed": 0, "held_out_fraction": 0.1}
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"protocol\.held_out_fraction"):
            fixed(manifest, seed=0, held_out_fraction=value)
    for value in (0, 1, -1):
        with pytest.raises(ValueError, match=rf"protocol\.class_fraction={value}"):
            holdout(manifest, **common, class_fraction=value)
    for value in (1, 4):
        with pytest.raises(ValueError, match=rf"protocol\.folds={value}: wanted between 2 and 3"):
            folds(manifest, **common, folds=value, fold=0)
    for value in (-1, 2):
        with pytest.raises(ValueError, match=rf"protocol\.fold={value}: choices are 0 … 1"):
            folds(manifest, **common, folds=2, fold=value)
    with pytest.raises(ValueError, match="1 training classes: holding classes out needs at least 2"):
        holdout(table([9], [3]), **common, class_fraction=0.5)
