"""The adversary by autograd: who gets which gradient, and how strong."""

import math

import pytest
import torch
from torch.nn import functional

from unseen.nn.adversary import (
    Auxiliary,
    Confusion,
    GradientReversal,
    constant,
    dann,
    linear,
    reverse_gradient,
)

D, C, B = 6, 4, 10


def adversary(kind, smoothing=0.1, **changes):
    torch.manual_seed(0)
    settings = {
        "hidden": 8,
        "label_smoothing": smoothing,
        "strength": lambda progress: constant(progress, maximum=0.5),
        "sees": "fused",
    }
    return kind(D, C, **(settings | changes))


def batch():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(B, D, generator=generator, requires_grad=True)
    return features, torch.randint(0, C, (B,), generator=generator)


def gradients(module, strength):
    features, labels = batch()
    module.zero_grad()
    module(features, labels, strength).loss.backward()
    zeros = torch.zeros(B, D)
    return (zeros if features.grad is None else features.grad), [p.grad.clone() for p in module.parameters()]


def plain_gradients(module):
    """Of the cross entropy of the head, without any adversary."""
    features, labels = batch()
    module.zero_grad()
    functional.cross_entropy(module.head(features), labels, label_smoothing=0.1).backward()
    return features.grad, [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
def test_reversal_gives_exactly_minus_lambda_times_the_gradient_and_leaves_the_head_its_own(strength):
    module = adversary(GradientReversal)
    of_features, of_head = gradients(module, strength)
    plain_features, plain_head = plain_gradients(module)
    torch.testing.assert_close(of_features, -strength * plain_features, rtol=0, atol=0)
    for mine, plain in zip(of_head, plain_head, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)


def test_reversal_is_the_identity_forward():
    values = torch.randn(5, 3)
    assert torch.equal(reverse_gradient(values, 0.7), values)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_the_auxiliary_control_gives_plus_lambda(strength):
    module = adversary(Auxiliary)
    of_features, of_head = gradients(module, strength)
    plain_features, plain_head = plain_gradients(module)
    torch.testing.assert_close(of_features, strength * plain_features, rtol=0, atol=0)
    assert all(torch.equal(mine, plain) for mine, plain in zip(of_head, plain_head, strict=True))


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_confusion_trains_the_head_by_cross_entropy_and_the_features_by_entropy_alone(strength):
    module = adversary(Confusion)
    of_features, of_head = gradients(module, strength)
    _, plain_head = plain_gradients(module)
    for mine, plain in zip(of_head, plain_head, strict=True):
        torch.testing.assert_close(mine, plain)
    features, _ = batch()
    posterior = module.head(features).softmax(1)
    entropy = -(posterior * posterior.log()).sum(1).mean()
    [wanted] = torch.autograd.grad(entropy, features)
    torch.testing.assert_close(of_features, -strength * wanted, rtol=1e-4, atol=1e-7)


def test_schedules_follow_their_formulas():
    for progress in (0.0, 0.1, 0.5, 1.0):
        assert constant(progress, maximum=0.3) == 0.3
        assert linear(progress, maximum=0.3) == pytest.approx(0.3 * progress)
        assert dann(progress, maximum=0.3) == pytest.approx(0.3 * (2 / (1 + math.exp(-10 * progress)) - 1))
    assert dann(0.0, maximum=1.0) == 0.0
    assert dann(1.0, maximum=1.0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 0}, "hidden=0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"sees": "pixels"}, "'pixels'.*'fused' or 'embedding'"),
        ({"strength": lambda progress: -1.0}, "maximum=-1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        adversary(GradientReversal, **changes)


def train_extractor(kind, strength):
    """Train a linear extractor; how far apart are the classes in its features, in standard deviations?"""
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (400,))
    images = torch.randn(400, 6)
    images[:, 0] += 4 * labels - 2
    extractor = torch.nn.Linear(6, 4)
    module = kind(4, 2, hidden=16, label_smoothing=0.0, strength=lambda progress: strength, sees="fused")
    # The features must keep something: here the second pixel, as the metric loss would ask.
    decoder = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(
        [*extractor.parameters(), *module.parameters(), *decoder.parameters()], lr=0.01
    )
    for _ in range(400):
        optimizer.zero_grad()
        features = extractor(images)
        kept = (decoder(features)[:, 0] - images[:, 1]).square().mean()
        (kept + module(features, labels, strength).loss).backward()
        optimizer.step()
    features = extractor(images).detach()
    means = torch.stack([features[labels == label].mean(0) for label in (0, 1)])
    spread = torch.cat([features[labels == label] - means[label] for label in (0, 1)]).std(0)
    return float(((means[0] - means[1]) / spread).norm())


@pytest.mark.slow
def test_reversal_takes_the_class_out_of_features_and_the_control_puts_it_in():
    reversed_, control = train_extractor(GradientReversal, 1.0), train_extractor(Auxiliary, 1.0)
    assert reversed_ < 1.0 < control
