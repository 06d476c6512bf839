"""The linear probe against scikit-learn by hand, at chance, and at certainty."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from unseen.evaluation.probe import probe_accuracy


def clusters(spread, classes=6, each=20, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    centers = torch.randn(classes, size, generator=generator)
    return centers[labels] + spread * torch.randn(len(labels), size, generator=generator), labels


def test_it_is_a_ridge_classifier_on_every_other_image():
    features, labels = clusters(2.0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    features, labels = features[order], labels[order]
    train, test = [], []
    for label in range(6):
        rows = np.flatnonzero(labels.numpy() == label)
        train += list(rows[::2])
        test += list(rows[1::2])
    scaler = StandardScaler().fit(features[train])
    classifier = RidgeClassifier(alpha=16.0).fit(scaler.transform(features[train]), labels[train])
    wanted = classifier.score(scaler.transform(features[test]), labels[test])
    assert 0.3 < wanted < 1
    assert probe_accuracy(features, labels) == pytest.approx(wanted)


def test_separable_classes_are_found_and_noise_is_at_chance():
    assert probe_accuracy(*clusters(0.05)) == 1.0
    features, labels = clusters(1.0, classes=4, each=200)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    assert abs(probe_accuracy(noise, labels) - 0.25) < 0.08


def test_lone_images_are_left_out_and_too_few_classes_give_nan():
    features, labels = clusters(0.05)
    lone = torch.cat([labels, torch.tensor([77])])
    assert probe_accuracy(torch.cat([features, features[:1]]), lone) == 1.0
    assert math.isnan(probe_accuracy(features[:3], torch.tensor([0, 0, 1])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_diverged_give_nan_and_no_traceback(value):
    features, labels = clusters(0.05)
    features[3] = value
    features[4] = -value
    assert math.isnan(probe_accuracy(features, labels))


def test_the_features_that_are_probed_stay_as_they_are():
    features, labels = clusters(0.05)
    before = features.clone()
    probe_accuracy(features, labels)
    assert torch.equal(features, before)
