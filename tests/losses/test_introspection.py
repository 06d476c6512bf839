"""Introspective distances against loops over pairs, and which losses cannot have them."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.losses import AngularLoss, ContrastiveLoss, ProxyAnchorLoss
from pytorch_metric_learning.miners import DistanceWeightedMiner
from torch import nn
from torch.nn.functional import normalize

from unseen.config.command_line import config_folder
from unseen.config.targets import instantiate
from unseen.losses import CrossBatchMemory, MetricLoss, WeightedSum, introspective
from unseen.losses.introspection import IntrospectiveDistance

LABELS = torch.arange(8) // 2
GAMMA, TAU = 4.0, 5.0


def vectors(seed=0, count=8):
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


def shrunk(one, other):
    """The squared distance of two images, `[semantic; uncertain]` each, number by number."""
    one, other = one.double().tolist(), other.double().tolist()
    lengths = [math.sqrt(sum(value**2 for value in image[:5])) for image in (one, other)]
    squared = sum((one[i] / lengths[0] - other[i] / lengths[1]) ** 2 for i in range(5))
    uncertainty = sum((one[i] + other[i]) ** 2 for i in range(5, 10))
    return squared * math.exp(-(uncertainty + GAMMA) / (TAU * squared)) if squared > 1e-12 else 0.0


@pytest.mark.parametrize(
    ("semantic", "of_squared"),
    [
        (CosineSimilarity(), lambda squared: 1 - squared / 2),
        (LpDistance(), math.sqrt),
        (LpDistance(power=2), lambda squared: squared),
    ],
)
def test_a_loop_over_pairs_gives_the_same(semantic, of_squared):
    distance = IntrospectiveDistance(semantic, bias=GAMMA, temperature=TAU)
    queries, references = vectors(), torch.cat([vectors(1, 5), vectors()[:2]])
    found = distance(queries, references)
    wanted = [[of_squared(shrunk(query, reference)) for reference in references] for query in queries]
    torch.testing.assert_close(found.double(), torch.tensor(wanted).double(), atol=1e-5, rtol=1e-4)


def test_a_proxy_without_uncertainty_has_the_similarity_of_the_authors_code():
    """1 − (1 − cos) exp(−(‖u‖² + 4) / (5 ‖x − p‖²)), with the squares written as there."""
    images, proxies = vectors(), torch.cat([vectors(3)[:, :5], torch.zeros(8, 5)], dim=1)
    distance = IntrospectiveDistance(CosineSimilarity(), bias=4, temperature=5)
    semantic, proxy = normalize(images[:, :5]), normalize(proxies[:, :5])
    cosines = semantic @ proxy.T
    squares = semantic.square().sum(1)[:, None] + proxy.square().sum(1) - 2 * cosines
    wanted = 1 - (1 - cosines) * torch.exp(-(images[:, 5:].square().sum(1)[:, None] + 4) / (5 * squares))
    torch.testing.assert_close(distance(images, proxies), wanted)


def test_a_loss_sees_it_beyond_its_batch_and_the_given_one_stays():
    plain = ContrastiveLoss(pos_margin=0.0, neg_margin=1.0)
    loss = introspective(MetricLoss(plain, memory=CrossBatchMemory(16, 10, 0)), bias=GAMMA, temperature=TAU)
    earlier, now = vectors(1), vectors()
    ids = torch.arange(8)
    loss(earlier, LABELS, ids + 8)
    value = loss(now, LABELS, ids)
    positive, negative = [], []
    for i in range(8):
        for j, other in enumerate(torch.cat([now, earlier])):
            if i == j:
                continue
            distance = math.sqrt(shrunk(now[i], other))
            same = bool(LABELS[i] == LABELS[j % 8])
            (positive if same else negative).append(distance if same else max(0.0, 1 - distance))
    wanted = sum(sum(each) / sum(one > 0 for one in each) for each in (positive, negative))
    assert value.item() == pytest.approx(wanted, rel=1e-4)
    assert isinstance(plain.distance, LpDistance)


def test_the_miner_goes_by_the_semantic_half():
    """Distance-weighted draws depend on the number of dimensions."""
    seen = []
    loss = MetricLoss(ContrastiveLoss(), DistanceWeightedMiner())
    loss = introspective(loss, bias=GAMMA, temperature=TAU)
    loss.miner.miner.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss(vectors(), LABELS, torch.arange(8))
    assert [given.tolist() for given in seen] == [vectors()[:, :5].tolist()]


def test_equal_images_pull_at_nothing_and_break_nothing():
    given = vectors()[:2].repeat(4, 1).requires_grad_()
    for semantic in (CosineSimilarity(), LpDistance(), LpDistance(power=2)):
        distance = IntrospectiveDistance(semantic, bias=GAMMA, temperature=TAU)
        (gradient,) = torch.autograd.grad(distance(given).sum(), given)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        "binomial_deviance",
        "circle",
        "contrastive",
        "lifted_structure",
        "margin",
        "multi_similarity",
        "supcon",
        "triplet",
    ],
)
def test_losses_of_pairs_learn_what_is_uncertain(loss):
    function = instantiate(OmegaConf.load(config_folder() / "loss" / f"{loss}.yaml").function)
    changed = introspective(MetricLoss(function), bias=GAMMA, temperature=TAU)
    given = (vectors(4, 24) + 2 * vectors(5)[LABELS].repeat(3, 1)).requires_grad_()
    value = changed(given, LABELS.repeat(3), torch.arange(24))
    (gradient,) = torch.autograd.grad(value, given)
    assert gradient.isfinite().all()
    assert gradient[:, :5].abs().max() > 0
    assert gradient[:, 5:].abs().max() > 0


class Own(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.sum()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MetricLoss(ProxyAnchorLoss(4, 10)), "has proxies.*loss=multi_similarity"),
        (WeightedSum({"a": (1, ContrastiveLoss()), "b": (1, ProxyAnchorLoss(4, 10))}), "has proxies"),
        (MetricLoss(AngularLoss()), "otherwise than by distances: AngularLoss cannot"),
        (MetricLoss(ContrastiveLoss(distance=SNRDistance())), "SNRDistance is neither"),
        (
            MetricLoss(ContrastiveLoss(distance=DotProductSimilarity(normalize_embeddings=False))),
            "DotProductSimilarity is neither",
        ),
        (MetricLoss(Own()), "no distance.*Own cannot"),
        (Own(), "Own is not known"),
    ],
)
def test_what_cannot_be_introspective_is_refused_in_words(loss, message):
    with pytest.raises(ValueError, match=message):
        introspective(loss, bias=GAMMA, temperature=TAU)


def test_numbers_are_positive():
    with pytest.raises(ValueError, match=r"bias=0.*positive"):
        IntrospectiveDistance(LpDistance(), bias=0, temperature=1)
