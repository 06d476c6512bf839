"""Proxies start with length 1, turn quickly, and are saved and restored."""

import pytest
import torch
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from torch.nn.functional import normalize

from unseen.losses import parameters_by_kind
from unseen.losses.proxies import center_spread

# loss → axis along which a proxy lies
AXES = {
    "proxy_nca": 1,
    "proxy_nca_pp": 1,
    "proxy_anchor": 1,
    "soft_triple": 0,
    "arcface": 0,
    "cosface": 0,
    "norm_softmax": 0,
}


def degrees_turned(loss, axis, steps=10):
    """Mean angle between the proxies before and after some steps of Adam on a fixed random batch."""
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(64, 128, generator=generator))
    labels = torch.randint(20, (64,), generator=generator)
    (proxies,) = loss.parameters()
    before = proxies.detach().clone()
    optimizer = torch.optim.Adam([proxies], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(embeddings, labels, torch.arange(64)).backward()
        optimizer.step()
    return (
        torch.cosine_similarity(before, proxies.detach(), dim=axis)
        .clamp(-1, 1)
        .acos()
        .rad2deg()
        .mean()
        .item()
    )


@pytest.mark.parametrize(("name", "axis"), AXES.items())
def test_proxies_start_with_length_one(name, axis, build_loss):
    (proxies,) = build_loss(name, num_classes=20, embedding_size=128).parameters()
    assert proxies.shape[axis] == 128
    torch.testing.assert_close(proxies.norm(dim=axis), torch.ones(proxies.shape[1 - axis]))
    # Random directions: no two are alike.
    directions = proxies.movedim(axis, 1)
    assert (directions @ directions.T - torch.eye(len(directions))).abs().max() < 0.6


@pytest.mark.parametrize(("name", "axis"), AXES.items())
def test_proxies_turn_far_in_ten_steps(name, axis, build_loss):
    """Ten steps of 0.01 in each of 128 coordinates go up to 1.1 far: tens of degrees at length 1."""
    unit = build_loss(name, num_classes=20, embedding_size=128)
    long = build_loss(name, num_classes=20, embedding_size=128)
    (proxies,) = long.parameters()
    proxies.data *= 128**0.5
    turned, turned_long = degrees_turned(unit, axis), degrees_turned(long, axis)
    assert turned > 15
    assert turned > 4 * turned_long


@pytest.mark.parametrize("name", AXES)
def test_proxies_are_saved_and_restored(name, build_loss):
    saved, restored = build_loss(name), build_loss(name)
    with torch.no_grad():
        for proxies in saved.parameters():
            proxies.normal_()
    assert not torch.equal(next(saved.parameters()), next(restored.parameters()))
    restored.load_state_dict(saved.state_dict())
    assert torch.equal(next(saved.parameters()), next(restored.parameters()))


def test_spread_of_centers_against_the_quadratic_form():
    centers = torch.randn(5 * 4, 8)
    expected = SparseCentersRegularizer(num_classes=5, centers_per_class=4)(centers)
    torch.testing.assert_close(center_spread(centers, 4), expected)


def test_merged_centers_have_finite_gradients():
    centers = torch.ones(2 * 3, 8, requires_grad=True)
    center_spread(centers, 3).backward()
    assert torch.isfinite(centers.grad).all()


def test_one_center_a_class_has_no_spread(build_loss):
    assert center_spread(torch.randn(5, 8), 1) == 0


@pytest.mark.parametrize("name", AXES)
def test_every_proxy_is_known_as_one(name, build_loss):
    loss = build_loss(name)
    assert parameters_by_kind(loss) == {"proxies": list(loss.parameters()), "loss": []}


@pytest.mark.parametrize("overrides", [[], ["+loss.function.num_classes=6"]], ids=["one", "one a class"])
def test_a_boundary_is_no_proxy(overrides, build_loss):
    loss = build_loss("margin", *overrides)
    assert parameters_by_kind(loss) == {"proxies": [], "loss": [loss.function.beta]}
