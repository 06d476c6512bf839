"""The compiled loops against NumPy: what they look for is neither missed nor found everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.retrieval.engine.kernels import Candidates, Tile, _coarse_limit, _kth_score, _limit, _reaches

WRITTEN = {"float32": 0.0, "bfloat16": 2.0**-7, "int8": 0.0}


def candidates(scores, k=1, threshold=-np.inf, written=0.0):
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float32)).copy()
    one = np.ones(1)
    return Candidates(
        depth=np.array([k]),
        rows=np.zeros(1, dtype=np.int64),
        norm=one,
        scores=scores,
        bits=scores.view(np.int32),
        columns=np.zeros(scores.shape, dtype=np.int32),
        used=np.array([scores.shape[1]]),
        due=np.array([scores.shape[1]]),
        threshold=np.array([threshold]),
        base=0 * one,
        slope=0 * one,
        error=0 * one,
        written=written,
    )


def tile(integral=False, shift=0, worth=1.0):
    half = np.zeros(1, dtype=np.float32)
    return Tile(
        first=0, half=half, least_half=0.0, coarseness=0.0, worth=worth, integral=integral, shift=shift
    )


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-2.5, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 0.5000001, 3.0]), min_size=1),
    data=st.data(),
)
def test_the_kth_score_is_that_of_a_sort(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    assert _kth_score(candidates(scores, k=k), 0) == np.sort(np.float32(scores))[-k]


@settings(max_examples=300, deadline=None)
@given(
    value=st.floats(-4, 4, width=32),
    threshold=st.floats(-4, 4),
    precision=st.sampled_from(["float32", "bfloat16", "int8"]),
)
def test_no_product_that_may_be_near_is_missed_and_none_far_below_is_found(value, threshold, precision):
    written = WRITTEN[precision]
    if precision == "int8":
        worth, product = 1e-4, int(np.floor(value / 1e-4))
        value, read = product * worth, tile(integral=True, worth=worth)
    elif precision == "bfloat16":
        rounded = torch.tensor(value).bfloat16()
        product, read = rounded.view(torch.int16).item(), tile(shift=16)
    else:
        product, read = int(np.float32(value).view(np.int32)), tile()
    limit = _limit(candidates([0.0], threshold=threshold, written=written), 0, read)
    found = _reaches(product, limit, read)
    if found:
        assert product >= _coarse_limit(limit, read)
    if value >= threshold:
        assert found
    if value < threshold - abs(threshold) * (3 * written + 1e-5) - 2e-4:
        assert not found


@pytest.mark.parametrize(("shift", "integral"), [(0, False), (16, False), (0, True)])
def test_a_query_that_was_given_up_finds_nothing(shift, integral):
    read = tile(integral=integral, shift=shift)
    limit = _limit(candidates([0.0], threshold=np.inf), 0, read)
    greatest = 127 * 127 * 4096 if integral else int(np.float32(1e30).view(np.int32)) >> shift
    assert not _reaches(greatest, limit, read)
    assert limit <= np.iinfo(np.int16 if shift else np.int32).max
