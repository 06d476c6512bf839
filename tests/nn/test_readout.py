"""The readout against scikit-learn's principal components, and what it leaves alone."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from sklearn.decomposition import PCA
from tests.nn.adversaries import FUSED, IMAGES, SIZE, embedder

from unseen.nn.readout import Readout, evening
from unseen.retrieval import evaluate

ONE_CLASS = torch.zeros(200, dtype=torch.int64)


def features(count, dimensions=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.1, dimensions)
    return torch.randn(count, dimensions, generator=generator) * spread + 5


@pytest.mark.parametrize(("count", "size"), [(200, 6), (15, 6), (200, 20)])
def test_it_gives_scikit_learns_principal_components_up_to_sign(count, size):
    values, readout = features(count), Readout(20, size)
    readout.fit(values, ONE_CLASS[:count])
    wanted = PCA(size, svd_solver="full").fit(values.double().numpy())
    others = features(30, seed=1)
    mine, theirs = readout(others).numpy(), wanted.transform(others.double().numpy())
    signs = np.sign((mine * theirs).sum(0))
    np.testing.assert_allclose(mine * signs, theirs, atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_networks_features_are_scaled_to_their_shares_and_reduced_together(share):
    """Oracle: scikit-learn's components of columns that NumPy scaled."""
    learned, other = features(200), 100 * features(200, 9, seed=2)
    readout = Readout(20, 6, beside=9, share=share)
    readout.fit(torch.cat([learned, other], dim=1), ONE_CLASS)
    scaled = []
    for part, weight in ((learned, 1 - share), (other, share)):
        centred = part.double().numpy() - part.double().numpy().mean(0)
        scaled.append(centred * np.sqrt(weight / centred.var(0).sum()))
    wanted = PCA(6, svd_solver="full").fit_transform(np.concatenate(scaled, axis=1))
    mine = readout(torch.cat([learned, other], dim=1)).numpy()
    np.testing.assert_allclose(mine * np.sign((mine * wanted).sum(0)), wanted, atol=1e-4)


def test_few_images_give_their_directions_first_and_others_at_right_angles():
    values, readout = features(5), Readout(20, 10)
    readout.fit(values, ONE_CLASS[:5])
    rows = readout.directions
    torch.testing.assert_close(rows @ rows.T, torch.eye(10), atol=1e-5, rtol=0)
    centred = values - values.mean(0)
    torch.testing.assert_close(centred @ rows[:4].T @ rows[:4], centred, atol=1e-4, rtol=0)
    torch.testing.assert_close(centred @ rows[4:].T, torch.zeros(5, 6), atol=1e-4, rtol=0)


def test_distances_are_those_of_the_features_where_nothing_is_left_out():
    values, readout = features(50), Readout(20, 32)
    readout.fit(values, ONE_CLASS[:50])
    mine, theirs = torch.pdist(readout(values)), torch.pdist(values)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert readout(values)[:, 20:].abs().max() == 0


def classed(classes, each, seed=0):
    """Classes that differ in one way, and images of a class that differ in another."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    values = torch.randn(classes, 20, generator=generator)[labels] * torch.linspace(0.2, 2, 20)
    return values + torch.randn(len(labels), 20, generator=generator) * torch.linspace(4, 0.2, 20), labels


@pytest.mark.parametrize("whitening", [0.1, 1.0, 10.0])
def test_directions_are_evened_out_as_a_loop_over_classes_says(whitening):
    values, labels = classed(6, 15)
    readout = Readout(20, 8, whitening)
    readout.fit(values, labels)
    plain = Readout(20, 8)
    plain.fit(values, labels)
    read = plain(values).double().numpy()
    scatter, freedom = np.zeros((8, 8)), 0
    for label in range(6):
        own = read[labels.numpy() == label]
        for image in own:
            scatter += np.outer(image - own.mean(0), image - own.mean(0))
        freedom += len(own) - 1
    scatter /= freedom
    shrunk = scatter / (np.trace(scatter) / 8) + whitening * np.eye(8)
    wanted = read @ fractional_matrix_power(shrunk, -0.5)
    np.testing.assert_allclose(readout(values).numpy(), wanted, atol=2e-3)


def test_with_little_shrinkage_images_of_a_class_differ_alike_in_all_directions():
    values, labels = classed(10, 200)
    readout = Readout(20, 20, 1e-6)
    readout.fit(values, labels)
    read = readout(values)
    within = torch.cat([read[labels == label] - read[labels == label].mean(0) for label in range(10)])
    covariance = within.T @ within
    torch.testing.assert_close(covariance / covariance.trace() * 20, torch.eye(20), atol=1e-2, rtol=0)


def test_other_classes_are_told_apart_better():
    """Where nuisance is louder than what tells classes apart, and the same for classes never seen."""
    values, labels = classed(30, 20)
    others, other_labels = classed(40, 10, seed=1)
    found = []
    for whitening in (None, 1.0):
        readout = Readout(20, 20, whitening)
        readout.fit(values, labels)
        found.append(evaluate(readout(others), other_labels).metrics["map_at_r"])
    assert found[1] > found[0] + 0.1


def test_classes_of_one_image_say_nothing():
    values = features(50)
    one, other = Readout(20, 6, 1.0), Readout(20, 6)
    one.fit(values, torch.arange(50))
    other.fit(values, torch.arange(50))
    torch.testing.assert_close(one.directions, other.directions)
    assert torch.equal(evening(torch.ones(4, 3), torch.zeros(4), 1.0), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("whitening", [0, -1.0, float("nan")])
def test_a_shrinkage_that_is_none_is_refused(whitening):
    with pytest.raises(ValueError, match=r"embedding.whitening=.* wanted a number above 0, or null"):
        Readout(20, 6, whitening)


def test_it_is_random_but_the_same_before_it_is_fitted():
    one, other = Readout(20, 6), Readout(20, 6)
    assert torch.equal(one.directions, other.directions)
    torch.testing.assert_close(one.directions @ one.directions.T, torch.eye(6), atol=1e-5, rtol=0)


def test_features_that_are_not_finite_change_nothing():
    readout = Readout(20, 6)
    readout.fit(features(50), ONE_CLASS[:50])
    before = readout.directions.clone()
    broken = features(50)
    broken[3, 4] = torch.nan
    readout.fit(broken, ONE_CLASS[:50])
    assert torch.equal(readout.directions, before)


def test_training_sees_the_projection_and_evaluation_the_features():
    images = torch.zeros(IMAGES, 3, 1, 1)
    model = embedder(readout="features")
    model.readout.fit(features(60, FUSED), ONE_CLASS[:60])
    trained = model.train()(images)
    projected = torch.nn.functional.normalize(model.projection(trained.fused.features), dim=1)
    torch.testing.assert_close(trained.embedding, projected)
    deployed = model.eval()(images)
    assert deployed.embedding.shape == (IMAGES, SIZE)
    read = torch.nn.functional.normalize(model.readout(deployed.fused.features), dim=1)
    torch.testing.assert_close(deployed.embedding, read)
    plain = embedder(readout="projection")
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(plain.eval()(images).embedding, projected)


def test_an_unknown_readout_is_refused():
    with pytest.raises(ValueError, match="readout=head"):
        embedder(readout="head")
