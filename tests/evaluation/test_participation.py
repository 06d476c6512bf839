"""The participation ratio against the eigenvalues themselves."""

import math

import numpy as np
import pytest
import torch

from unseen.evaluation.participation import participation_ratio


@pytest.mark.parametrize(("classes", "size"), [(5, 12), (30, 4)])
def test_it_is_the_ratio_of_the_eigenvalues_of_the_scatter(classes, size):
    generator = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, 60)])
    embeddings = generator.normal(size=(len(labels), size))
    means = np.stack([embeddings[labels == one].mean(0) for one in range(classes)])
    values = np.linalg.eigvalsh(np.cov(means.T))
    wanted = values.sum() ** 2 / (values**2).sum()
    found = participation_ratio(torch.tensor(embeddings), torch.tensor(labels))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_classes_along_a_line_have_one_direction_and_corners_of_a_simplex_one_less_than_classes():
    labels = torch.arange(6)
    line = torch.arange(6.0).unsqueeze(1) * torch.tensor([[1.0, 2.0, -1.0]])
    assert participation_ratio(line, labels) == pytest.approx(1)
    assert participation_ratio(torch.eye(6), labels) == pytest.approx(5)


@pytest.mark.parametrize("embeddings", [torch.ones(4, 3), torch.full((4, 3), math.nan)])
def test_without_any_scatter_there_is_no_ratio(embeddings):
    assert math.isnan(participation_ratio(embeddings, torch.tensor([0, 0, 1, 1])))
    assert math.isnan(participation_ratio(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)))
