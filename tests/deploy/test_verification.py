"""Thresholds keep the rate of errors that they claim, against scikit-learn and a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from unseen.deploy.verification import calibrate, identify, verify


def images(seed, classes=10, each=12, noise=1.0):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    values = generator.normal(size=(classes, 16))[labels] + noise * generator.normal(size=(len(labels), 16))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
def test_it_is_where_the_roc_curve_of_scikit_learn_is(seed):
    generator = np.random.default_rng(seed)
    same, different = generator.normal(0.6, 0.2, 400), generator.normal(0.1, 0.2, 5000)
    found = verify(same, different, (0.1, 0.01, 0.001))
    truth = np.r_[np.ones(400), np.zeros(5000)]
    false, true, thresholds = roc_curve(truth, np.r_[same, different], drop_intermediate=False)
    for rate, entry in zip((0.1, 0.01, 0.001), found, strict=False):
        best = np.flatnonzero(false <= rate).max()
        assert entry["false_accepts"] == pytest.approx(false[best])
        assert entry["false_rejects"] == pytest.approx(1 - true[best])
        assert entry["threshold"] <= thresholds[best]
    equal = np.abs(false - (1 - true)).min()
    assert abs(found[-1]["false_accepts"] - found[-1]["false_rejects"]) == pytest.approx(equal)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.sampled_from([0.5, 0.1, 0.01]),
)
def test_ties_never_break_the_promise(same, different, rate):
    entry = verify(np.array(same) / 5, np.array(different) / 5, (rate,))[0]
    assert entry["false_accepts"] <= rate
    lower = np.array(different)[np.array(different) / 5 < entry["threshold"]]
    if len(lower):  # one value lower would accept too many
        assert np.mean(np.array(different) >= lower.max()) > rate


def test_known_and_unknown_by_a_loop():
    embeddings, labels = images(3)
    similarities = embeddings.astype(np.float64) @ embeddings.T
    gallery, known, unknown, seen = [], [], [], dict.fromkeys(range(10), 0)
    for row, label in enumerate(labels):
        if label % 2:
            unknown.append(row)
        else:
            (known if seen[label] % 2 else gallery).append(row)
        seen[label] += 1
    for entry, rate in zip(identify(similarities, labels, (0.1, 0.01)), (0.1, 0.01), strict=True):
        rejected = [
            max(similarities[row, other] for other in gallery) < entry["threshold"] for row in unknown
        ]
        right = []
        for row in known:
            nearest = max(gallery, key=lambda other: similarities[row, other])
            right.append(labels[nearest] == labels[row] and similarities[row, nearest] >= entry["threshold"])
        assert entry["unknown_rejected"] == pytest.approx(np.mean(rejected))
        assert entry["unknown_rejected"] >= 1 - rate
        assert entry["known_found"] == pytest.approx(np.mean(right))


def test_a_threshold_holds_on_other_classes():
    """By simulation: calibrated on some classes, the error on many others is near what was promised."""
    found = calibrate(*images(0, classes=200, each=10))
    embeddings, labels = images(1, classes=200, each=10)
    similarities = embeddings @ embeddings.T
    different = similarities[labels[:, None] != labels]
    for entry, rate in zip(found["same"], (0.1, 0.01, 0.001), strict=False):
        assert (different >= entry["threshold"]).mean() == pytest.approx(rate, rel=0.2)
    assert (found["classes"], found["images"]) == (200, 2000)


def test_too_few_classes_are_refused():
    embeddings, labels = images(0, classes=1)
    with pytest.raises(ValueError, match="at least two classes with two images"):
        calibrate(embeddings, labels)


def test_classes_of_one_image_leave_the_thresholds_as_they_are():
    embeddings, labels = images(0, classes=4)
    alone, _ = images(1, classes=5, each=1)
    # Lone classes before, between and after the others.
    places = np.r_[-1, labels * 2, 1, 3, 5, 99]
    mixed = calibrate(np.r_[alone[:1], embeddings, alone[1:]], places)
    assert mixed == calibrate(embeddings, labels)
    assert all(np.isfinite(list(one.values())).all() for one in [*mixed["same"], *mixed["known"]])
