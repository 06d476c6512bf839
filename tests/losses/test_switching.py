"""ρ-regularisation against loops over pairs and triplets."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import SumReducer
from torch import nn
from torch.nn.functional import normalize

from unseen.losses import CrossBatchMemory, MetricLoss
from unseen.losses.switching import switched

IDS = torch.arange(12)
LABELS = IDS // 3


def embeddings():
    return normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))


def apart(one, other):
    return (one - other).norm().item()


class Watched(MetricLoss):
    """Keeps who was switched."""

    def _switched(self, indices, ids):
        state = torch.get_rng_state()
        self.switches = torch.rand(len(ids)) < self.switching
        torch.set_rng_state(state)
        return super()._switched(indices, ids)


def test_pairs_of_switched_anchors_are_pushed_apart():
    loss = Watched(ContrastiveLoss(neg_margin=1.5, reducer=SumReducer()), switching=0.5)
    points = embeddings()
    value = loss(points, LABELS, IDS)
    assert 0 < loss.switches.sum() < 12
    wanted = 0.0
    for i in range(12):
        for j in set(range(12)) - {i}:
            distance, same = apart(points[i], points[j]), LABELS[i] == LABELS[j]
            if same and not loss.switches[i]:
                wanted += distance
            elif same or not loss.switches[i]:
                wanted += max(0.0, 1.5 - distance)
    assert value.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("mined", [False, True], ids=["all", "mined"])
def test_triplets_of_switched_anchors_have_themselves_as_positives(mined):
    triplets = [
        (a, p, n)
        for a in range(12)
        for p in range(12)
        for n in range(12)
        if a != p and LABELS[a] == LABELS[p] != LABELS[n]
    ]
    indices = tuple(torch.tensor(triplets).T)

    class All(nn.Module):
        def forward(self, points, labels):
            return indices

    function = TripletMarginLoss(margin=0.4, reducer=SumReducer())
    loss = Watched(function, All() if mined else None, switching=0.5)
    points = embeddings()
    value = loss(points, LABELS, IDS)
    pushed = {(a, a, p) if loss.switches[a] else (a, p, n) for a, p, n in triplets}
    # Without a miner a switched anchor is paired with each positive once; mined, once for each negative.
    counted = pushed if not mined else [(a, a, p) if loss.switches[a] else (a, p, n) for a, p, n in triplets]
    wanted = sum(
        max(0.0, apart(points[a], points[p]) - apart(points[a], points[n]) + 0.4) for a, p, n in counted
    )
    assert value.item() == pytest.approx(wanted, rel=1e-4)


def test_nobody_is_switched_in_evaluation_or_by_default_and_a_batch_repeats_itself():
    function = ContrastiveLoss()
    points = embeddings()
    plain = MetricLoss(function)(points, LABELS, IDS)
    some = MetricLoss(function, switching=0.3)
    assert some(points, LABELS, IDS).item() != plain.item()
    assert some(points, LABELS, IDS).item() == some(points, LABELS, IDS).item()
    assert some.eval()(points, LABELS, IDS).item() == plain.item()


def test_pairs_with_a_memory_may_be_switched():
    def loss(switching):
        memory = CrossBatchMemory(size=12, embedding_size=5, warmup=0)
        made = MetricLoss(ContrastiveLoss(reducer=SumReducer()), memory=memory, switching=switching)
        memory.add(embeddings().flip(0), LABELS.flip(0), 100 + IDS)
        return made

    points = embeddings().requires_grad_()
    value = loss(0.5)(points, LABELS, IDS)
    value.backward()
    assert value.item() != loss(0.0)(points, LABELS, IDS).item()
    assert points.grad.isfinite().all()


def test_without_switches_indices_stay_as_they_are():
    nobody = torch.zeros(12, dtype=torch.bool)
    for count in (3, 4):
        indices = tuple(torch.randint(12, (7,)) for _ in range(count))
        assert all(torch.equal(*pair) for pair in zip(indices, switched(indices, nobody), strict=True))


OF_PAIRS = ["contrastive", "triplet", "multi_similarity", "lifted_structure", "margin", "circle", "supcon"]


@pytest.mark.parametrize("name", OF_PAIRS)
def test_every_loss_of_pairs_takes_switched_ones(build_loss, name):
    points = normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(1))).requires_grad_()
    labels, ids = torch.arange(24) // 4, torch.arange(24)
    given = [build_loss(name, f"loss.switching={rho}")(points, labels, ids) for rho in (0.0, 0.5)]
    assert given[0].item() != given[1].item()
    given[1].backward()
    assert points.grad.isfinite().all()


class Whole(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.sum()


@pytest.mark.parametrize(
    ("function", "switching", "words"),
    [
        (ContrastiveLoss(), 1.0, r"switching=1.0: a probability below 1"),
        (ContrastiveLoss(), -0.1, r"switching=-0.1"),
        (Whole(), 0.2, r"Whole takes fewer than 3 arguments"),
    ],
)
def test_impossible_switching_is_refused(function, switching, words):
    with pytest.raises(ValueError, match=words):
        MetricLoss(function, switching=switching)
