"""Batches are pure functions of (seed, epoch), complete, fair, sharded evenly, and resumable anywhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from unseen.data.clusters import clusters
from unseen.data.samplers import (
    ClassBalanced,
    ClusterBalanced,
    Draw,
    ResumableBatchSampler,
    Shuffled,
    _say_once,
)

Batches = list[list[Draw]]


def epoch_of(sampler: ResumableBatchSampler, epoch: int) -> Batches:
    sampler.set_epoch(epoch)
    return list(sampler)


def positions(batch: list[Draw]) -> list[int]:
    return [position for position, _, _ in batch]


def labels_of(sizes: list[int]) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@st.composite
def class_balanced(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=15))
    return {
        "labels": labels_of(sizes),
        "classes_per_batch": draw(st.integers(1, len(sizes))),
        "images_per_class": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 2**32)),
    }


@given(arguments=class_balanced(), epoch=st.integers(0, 9), world_size=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_every_batch_is_p_classes_by_k_images(arguments: dict[str, Any], epoch: int, world_size: int) -> None:
    labels, per_class = arguments["labels"], arguments["images_per_class"]
    for rank in range(world_size):
        sampler = ClassBalanced(**arguments, rank=rank, world_size=world_size)
        batches = epoch_of(sampler, epoch)
        assert len(batches) == len(sampler) > 0
        for batch in batches:
            counts = Counter(labels[positions(batch)].tolist())
            assert len(counts) == arguments["classes_per_batch"]
            assert set(counts.values()) == {per_class}
            for label in counts:
                images = Counter(p for p in positions(batch) if labels[p] == label)
                # Images repeat within a batch only where the class has too few.
                allowed = -(-per_class // int((labels == label).sum()))
                assert max(images.values()) <= allowed


@given(arguments=class_balanced(), epoch=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_no_image_is_left_out_unless_its_class_overflows_the_epoch(
    arguments: dict[str, Any], epoch: int
) -> None:
    labels, per_class = arguments["labels"], arguments["images_per_class"]
    sampler = ClassBalanced(**arguments)
    drawn = Counter(p for batch in epoch_of(sampler, epoch) for p in positions(batch))
    for label, size in Counter(labels.tolist()).items():
        seen = [drawn[p] for p in np.flatnonzero(labels == label)]
        if -(-size // per_class) <= len(sampler):
            assert min(seen) >= 1
        else:
            assert sum(seen) >= len(sampler) * per_class  # it is in every batch, as often as it can be


def test_classes_of_equal_size_come_out_even_without_repetition() -> None:
    sampler = ClassBalanced(labels_of([12] * 8), classes_per_batch=4, images_per_class=3, seed=0)
    drawn = Counter(p for batch in epoch_of(sampler, 0) for p in positions(batch))
    assert len(sampler) == 8
    assert drawn == Counter(range(96))


def test_images_of_uneven_classes_are_seen_about_equally_often() -> None:
    labels = labels_of(np.random.default_rng(1).integers(30, 200, 40).tolist())
    sampler = ClassBalanced(labels, classes_per_batch=8, images_per_class=4, seed=0)
    drawn = Counter(p for epoch in range(20) for batch in epoch_of(sampler, epoch) for p in positions(batch))
    counts = np.array([drawn[p] for p in range(len(labels))]) / 20
    assert counts.min() >= 1
    assert counts.max() <= 1.5
    assert counts.mean() <= 1.05


def test_a_class_that_overflows_neither_stretches_the_epoch_nor_loses_the_same_images_each_time() -> None:
    labels = labels_of([1000, *[10] * 30])
    sampler = ClassBalanced(labels, classes_per_batch=16, images_per_class=4, seed=0)
    assert len(sampler) == 7  # 30 classes of 3 groups, and one group of the large class in each batch
    drawn = Counter(p for epoch in range(60) for batch in epoch_of(sampler, epoch) for p in positions(batch))
    large = [drawn[p] for p in np.flatnonzero(labels == 0)]
    assert sum(large) == 60 * 7 * 4
    assert np.count_nonzero(large) > 700  # 1 - exp(-1.68) = 81 % of them


def test_classes_meet_different_classes() -> None:
    labels = labels_of([40] * 30)
    sampler = ClassBalanced(labels, classes_per_batch=5, images_per_class=4, seed=0)
    met: dict[int, set[int]] = {label: set() for label in range(30)}
    for epoch in range(10):
        for batch in epoch_of(sampler, epoch):
            together = set(labels[positions(batch)].tolist())
            for label in together:
                met[label] |= together
    assert min(map(len, met.values())) >= 25


@given(count=st.integers(1, 200), seed=st.integers(0, 99), data=st.data())
@settings(deadline=None)
def test_shuffled_batches_hold_every_image_at_most_once(count: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count))
    sampler = Shuffled(np.zeros(count, dtype=np.int64), batch_size=size, seed=seed)
    epochs = [epoch_of(sampler, epoch) for epoch in (0, 1)]
    for batches in epochs:
        drawn = [p for batch in batches for p in positions(batch)]
        assert len(batches) == len(sampler) == count // size
        assert {len(batch) for batch in batches} == {size}
        assert len(drawn) == len(set(drawn))
        assert set(drawn) <= set(range(count))


def samplers(**arguments: Any) -> list[ResumableBatchSampler]:
    labels = labels_of([7, 9, 30, 4, 12, 13, 2, 21])
    return [
        ClassBalanced(labels, classes_per_batch=3, images_per_class=4, **arguments),
        Shuffled(labels, batch_size=8, **arguments),
    ]


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    for first, second in zip(samplers(seed=5), samplers(seed=5), strict=True):
        third = epoch_of(first, 3)
        np.random.seed(1)  # noqa: NPY002 (global generators must not matter)
        torch.manual_seed(1)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        epoch_of(second, 0)
        assert epoch_of(second, 3) == third
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
        assert epoch_of(second, 4) != third
    for first, other in zip(samplers(seed=5), samplers(seed=6), strict=True):
        assert [positions(batch) for batch in epoch_of(first, 0)] != [
            positions(batch) for batch in epoch_of(other, 0)
        ]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_epoch_evenly(world_size: int) -> None:
    ranks = [samplers(seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for kind in range(2):
        shards = [epoch_of(ranks[rank][kind], 2) for rank in range(world_size)]
        assert len({len(shard) for shard in shards}) == 1
        assert len({len(ranks[rank][kind]) for rank in range(world_size)}) == 1
        places = [place for shard in shards for batch in shard for _, _, place in batch]
        assert len(places) == len(set(places)), "augmentation repeats over ranks"
        drawn = Counter(p for shard in shards for batch in shard for p in positions(batch))
        if kind == 0:
            assert len(drawn) == 98, "P×K loses images over ranks"
        else:
            assert max(drawn.values()) == 1
            # Ranks take turns in the order that one process alone would follow.
            alone = epoch_of(samplers(seed=5)[1], 2)[: sum(map(len, shards))]
            assert [shards[turn % world_size][turn // world_size] for turn in range(len(alone))] == alone


@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_can_be_entered_anywhere_once(rank: int) -> None:
    for sampler in samplers(seed=5, rank=rank, world_size=2):
        whole = epoch_of(sampler, 1)
        for start in range(len(whole) + 1):
            sampler.start = start
            assert list(sampler) == whole[start:]
        assert list(sampler) == whole


def test_lightning_finds_set_epoch() -> None:
    for sampler in samplers(seed=0):
        sampler.sampler.set_epoch(4)
        assert {epoch for batch in sampler for _, epoch, _ in batch} == {4}


def test_what_cannot_be_drawn_is_refused_with_key_value_and_choices() -> None:
    labels = labels_of([5, 5, 5])
    with pytest.raises(ValueError, match=r"sampler\.classes_per_batch=0: wanted at least 1"):
        ClassBalanced(labels, classes_per_batch=0, images_per_class=2, seed=0)
    with pytest.raises(ValueError, match=r"sampler\.images_per_class=0: wanted at least 1"):
        ClassBalanced(labels, classes_per_batch=2, images_per_class=0, seed=0)
    for value in (0, -3, 16):
        with pytest.raises(ValueError, match=rf"sampler\.batch_size={value}: wanted between 1 and 15"):
            Shuffled(labels, batch_size=value, seed=0)
    with pytest.raises(ValueError, match=r"between 1 and 7, for 15 training images on 2 process"):
        Shuffled(labels, batch_size=8, seed=0, world_size=2)


def test_few_classes_all_stand_in_each_batch_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_once.cache_clear()  # another test of this process may have said it
    labels = labels_of([6, 6, 6])
    for _ in range(2):
        sampler = ClassBalanced(labels, classes_per_batch=16, images_per_class=2, seed=0)
    for batch in epoch_of(sampler, 0):
        assert Counter(labels[positions(batch)].tolist()) == {0: 2, 1: 2, 2: 2}
    assert [record.message for record in caplog.records] == [
        "sampler.classes_per_batch=16: the training split has 3 classes; each batch has all of them."
    ]


def test_more_images_than_any_class_has_are_repeated_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ClassBalanced(labels_of([10, 7]), classes_per_batch=2, images_per_class=10, seed=0)
    assert not caplog.messages
    ClassBalanced(labels_of([10, 7]), classes_per_batch=2, images_per_class=50, seed=0)
    [warning] = caplog.messages
    assert warning.startswith("sampler.images_per_class=50: no training class has more than 10 images")


def clustered(labels: NDArray[np.int64], centres: NDArray[Any] | None, **changes: Any) -> ClusterBalanced:
    arguments = {"classes_per_batch": 4, "images_per_class": 2, "classes_per_cluster": 4, "permuted": False}
    sampler = ClusterBalanced(labels, **{**arguments, "seed": 0, **changes})
    sampler.centres = centres
    return sampler


@given(
    arguments=class_balanced(),
    cluster=st.integers(1, 5),
    epoch=st.integers(1, 9),
    world_size=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_batches_of_clusters_have_all_that_other_batches_have(
    arguments: dict[str, Any], cluster: int, epoch: int, world_size: int
) -> None:
    """P×K, every image that `ClassBalanced` cannot leave out, and ranks that share one epoch."""
    labels, per_class = arguments["labels"], arguments["images_per_class"]
    # Some classes coincide.
    centres = np.random.default_rng(epoch).integers(-1, 2, (labels.max() + 1, 2)).astype(float)
    more = {**arguments, "classes_per_cluster": cluster, "centres": centres, "world_size": world_size}
    shards = [epoch_of(clustered(**more, rank=rank), epoch) for rank in range(world_size)]
    assert [len(shard) for shard in shards] == [
        len(ClassBalanced(**arguments, world_size=world_size))
    ] * world_size
    drawn = [positions(batch) for shard in shards for batch in shard]
    for batch in drawn:
        counts = Counter(labels[batch].tolist())
        assert len(counts) == arguments["classes_per_batch"]
        assert set(counts.values()) == {per_class}
    seen = Counter(position for batch in drawn for position in batch)
    for label, size in Counter(labels.tolist()).items():
        if -(-size // per_class) <= len(drawn):
            assert min(seen[p] for p in np.flatnonzero(labels == label)) >= 1
    places = [place for shard in shards for batch in shard for _, _, place in batch]
    assert len(places) == len(set(places))


def blobs(each: int = 4) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The blob of each of 5 × each classes, mixed, and their centres."""
    generator = np.random.default_rng(0)
    blob = generator.permutation(np.repeat(np.arange(5), each))
    return blob, 10 * np.eye(5)[blob] + generator.normal(0, 0.1, (len(blob), 5))


def test_a_batch_is_of_one_cluster_but_by_the_control_of_any() -> None:
    labels, (blob, centres) = labels_of([8] * 20), blobs()
    mixed = {}
    for permuted in (False, True):
        batches = epoch_of(clustered(labels, centres, permuted=permuted), 1)
        assert Counter(p for batch in batches for p in positions(batch)) == Counter(range(160))
        mixed[permuted] = np.mean([len(np.unique(blob[labels[positions(batch)]])) for batch in batches])
    assert mixed[False] == 1
    assert mixed[True] > 2


def test_batches_depend_on_seed_epoch_and_centres_alone_and_on_none_in_the_first_epoch() -> None:
    labels, (_, centres) = labels_of([8] * 20), blobs()
    once = epoch_of(clustered(labels, centres), 3)
    assert epoch_of(clustered(labels, 2 * centres.astype(np.float32)), 3) == once  # directions count
    for other in (clustered(labels, centres, seed=1), clustered(labels, centres[::-1])):
        assert epoch_of(other, 3) != once
    assert epoch_of(clustered(labels, centres), 4) != once
    sampler = clustered(labels, None)
    plain = ClassBalanced(labels, classes_per_batch=4, images_per_class=2, seed=0)
    assert epoch_of(sampler, 0) == epoch_of(plain, 0)
    sampler.centres, sampler.repeats = centres, True
    assert [positions(batch) for batch in epoch_of(sampler, 3)] == [positions(b) for b in epoch_of(plain, 0)]


def test_clusters_are_those_of_scipy_from_the_same_start() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(60, 3))
    _, start = clusters(points, 5, np.random.default_rng(1))
    found, means = clusters(points, 5, np.random.default_rng(1))
    wanted_means, wanted = kmeans2(points, start, minit="matrix", iter=50)
    assert np.array_equal(found, wanted)
    np.testing.assert_allclose(means, wanted_means)
    blob, centres = blobs(each=10)
    found, _ = clusters(centres, 5, generator)
    assert len({(int(one), int(other)) for one, other in zip(found, blob, strict=True)}) == 5
    same, _ = clusters(np.ones((4, 2)), 3, generator)
    assert set(same) <= {0, 1, 2}


def test_one_cluster_is_none_and_sizes_are_positive(caplog: pytest.LogCaptureFixture) -> None:
    _say_once.cache_clear()
    clustered(labels_of([6] * 5), None, classes_per_cluster=5)
    assert "one cluster holds all 5 classes" in caplog.text
    with pytest.raises(ValueError, match=r"sampler\.classes_per_cluster=0: wanted at least 1"):
        clustered(labels_of([6] * 5), None, classes_per_cluster=0)
