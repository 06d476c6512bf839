"""Matched galleries: equal shapes, as large as they can be, and another choice in each draw."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unseen.evaluation.galleries import matched_galleries

sizes_of_classes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def shape_of(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return sorted(Counter(labels[rows].tolist()).values())


@given(seen=sizes_of_classes, unseen=sizes_of_classes, seed=st.integers(-2, 99))
def test_both_have_the_same_classes_and_images_a_class(seen: list[int], unseen: list[int], seed: int) -> None:
    random = np.random.default_rng(abs(seed))
    # Labels need not count from 0, nor be in order.
    labels = [random.permutation(np.repeat(np.arange(len(s)) * 7 + 3, s)) for s in (seen, unseen)]
    chosen = matched_galleries(*labels, seed=seed)
    shapes = [shape_of(side, rows) for side, rows in zip(labels, chosen, strict=True)]
    assert shapes[0] == shapes[1]
    assert all(size >= 2 for size in shapes[0])
    for rows in chosen:
        assert np.all(np.diff(rows) > 0)
    again = matched_galleries(*labels, seed=seed)
    assert all(np.array_equal(one, other) for one, other in zip(chosen, again, strict=True))


def test_no_more_is_lost_than_must_be() -> None:
    seen, unseen = np.repeat(np.arange(10), 3), np.repeat(np.arange(6), 50)
    of_seen, of_unseen = matched_galleries(seen, unseen, seed=0)
    assert shape_of(seen, of_seen) == [3] * 6
    assert len(of_unseen) == 18
    assert [len(side) for side in matched_galleries(unseen, unseen, seed=0)] == [300, 300]


def test_limits_bind_classes_and_images() -> None:
    seen, unseen = np.repeat(np.arange(10), 30), np.repeat(np.arange(6), 50)
    chosen = matched_galleries(seen, unseen, seed=0, most_classes=4, most_images=5)
    assert shape_of(seen, chosen[0]) == shape_of(unseen, chosen[1]) == [5] * 4


@pytest.mark.parametrize("side", [0, 1])
def test_another_seed_or_draw_chooses_other_classes_and_images_of_both(side: int) -> None:
    # Something to choose for both: more classes here, more images there, in a few classes of each.
    seen = np.repeat(np.arange(12), 6)
    unseen = np.concatenate([np.repeat(np.arange(8), 9), np.repeat(np.arange(8, 12), 2)])
    drawn = [
        matched_galleries(seen, unseen, seed=seed, draw=draw)[side] for seed, draw in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({rows.tobytes() for rows in drawn}) == 3


def test_the_draws_of_seen_and_unseen_images_are_independent() -> None:
    labels = np.repeat(np.arange(10), 6)
    chosen = matched_galleries(labels, labels, seed=0, most_classes=5, most_images=3)
    assert not np.array_equal(*chosen)
