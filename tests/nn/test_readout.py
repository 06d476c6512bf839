"""The readout against scikit-learn's principal components, and what it leaves alone."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from tests.nn.adversaries import FUSED, IMAGES, SIZE, embedder

from unseen.nn.readout import Readout


def features(count, dimensions=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.1, dimensions)
    return torch.randn(count, dimensions, generator=generator) * spread + 5


@pytest.mark.parametrize(("count", "size"), [(200, 6), (15, 6), (200, 20)])
def test_it_gives_scikit_learns_principal_components_up_to_sign(count, size):
    values, readout = features(count), Readout(20, size)
    readout.fit(values)
    wanted = PCA(size, svd_solver="full").fit(values.double().numpy())
    others = features(30, seed=1)
    mine, theirs = readout(others).numpy(), wanted.transform(others.double().numpy())
    signs = np.sign((mine * theirs).sum(0))
    np.testing.assert_allclose(mine * signs, theirs, atol=1e-3)


def test_few_images_give_their_directions_first_and_others_at_right_angles():
    values, readout = features(5), Readout(20, 10)
    readout.fit(values)
    rows = readout.directions
    torch.testing.assert_close(rows @ rows.T, torch.eye(10), atol=1e-5, rtol=0)
    centred = values - values.mean(0)
    torch.testing.assert_close(centred @ rows[:4].T @ rows[:4], centred, atol=1e-4, rtol=0)
    torch.testing.assert_close(centred @ rows[4:].T, torch.zeros(5, 6), atol=1e-4, rtol=0)


def test_distances_are_those_of_the_features_where_nothing_is_left_out():
    values, readout = features(50), Readout(20, 32)
    readout.fit(values)
    mine, theirs = torch.pdist(readout(values)), torch.pdist(values)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert readout(values)[:, 20:].abs().max() == 0


def test_it_is_random_but_the_same_before_it_is_fitted():
    one, other = Readout(20, 6), Readout(20, 6)
    assert torch.equal(one.directions, other.directions)
    torch.testing.assert_close(one.directions @ one.directions.T, torch.eye(6), atol=1e-5, rtol=0)


def test_features_that_are_not_finite_change_nothing():
    readout = Readout(20, 6)
    readout.fit(features(50))
    before = readout.directions.clone()
    broken = features(50)
    broken[3, 4] = torch.nan
    readout.fit(broken)
    assert torch.equal(readout.directions, before)


def test_training_sees_the_projection_and_evaluation_the_features():
    images = torch.zeros(IMAGES, 3, 1, 1)
    model = embedder(readout="features")
    model.readout.fit(features(60, FUSED))
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
