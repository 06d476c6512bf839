"""Regularisers beside any loss: against formulas in loops, other implementations, autograd."""

import functools

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss
from tests.nn.adversaries import CLASSES, FUSED, IMAGES, Maps, embedder, labels, metric
from torch import nn
from torch.nn import functional

from unseen.losses import WeightedSum, as_metric_loss, introspective
from unseen.nn.backbone import Backbone
from unseen.nn.regularizer import (
    Distillation,
    EmbeddingMixup,
    Introspection,
    RegularizerInput,
    SelfDistillation,
)
from unseen.nn.regularizer.relations import distances, similarities

IDS = torch.arange(IMAGES)


def sight(model, loss=None, images=None, target=None):
    """What a regulariser sees; the loss is `(embeddings, labels, ids)` → scalar."""
    loss = loss or (lambda embeddings, target, ids: metric(embeddings, target))
    images = torch.zeros(IMAGES, 3, 1, 1) if images is None else images
    target = labels()[: len(images)] if target is None else target
    embedded = model(images)
    ids = torch.arange(len(images))
    return RegularizerInput(images, embedded, model, target, ids, loss(embedded.embedding, target, ids), loss)


def vectors(seed, size):
    return torch.randn(9, size, generator=torch.Generator().manual_seed(seed))


def test_relational_distillation_is_that_of_the_formula_pair_by_pair():
    student, teacher = vectors(0, 4), vectors(1, 7)

    def relative(points):
        pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
        lengths = np.array([np.sqrt(((points[i] - points[j]) ** 2).sum()) for i, j in pairs])
        return lengths / lengths.mean()

    apart = np.abs(relative(student.double().numpy()) - relative(teacher.double().numpy()))
    huber = np.where(apart <= 1, apart**2 / 2, apart - 0.5)
    assert distances(student, teacher).item() == pytest.approx(huber.mean(), rel=1e-5)


def test_distillation_of_similarities_is_the_divergence_row_by_row():
    student, teacher, temperature = vectors(0, 4), vectors(1, 7), 0.3

    def posterior(points):
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        scores = np.exp(points @ points.T / temperature)
        return scores / scores.sum(axis=1, keepdims=True)

    found, wanted = posterior(student.double().numpy()), posterior(teacher.double().numpy())
    rows = [
        sum(w * np.log(w / f) for w, f in zip(*pair, strict=True)) for pair in zip(wanted, found, strict=True)
    ]
    got = similarities(student, teacher, temperature=temperature)
    assert got.item() == pytest.approx(temperature**2 * np.mean(rows), rel=1e-4)


RELATIONS = [distances, functools.partial(similarities, temperature=0.5)]


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_ignores_size_and_turns_vanishes_when_equal_and_never_moves_the_teacher(relation):
    student, teacher = vectors(0, 5).requires_grad_(), vectors(1, 5).requires_grad_()
    turn = torch.linalg.qr(vectors(2, 9)[:5, :5]).Q
    assert relation(student, student).item() == pytest.approx(0, abs=1e-6)
    assert relation(3 * student @ turn, student).item() == pytest.approx(0, abs=1e-5)
    relation(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.norm() > 0


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_has_finite_gradients_where_images_coincide_and_in_half_precision(relation):
    student = torch.cat([vectors(0, 4), vectors(0, 4)]).bfloat16().requires_grad_()
    teacher = torch.cat([vectors(1, 6), vectors(1, 6)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = relation(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = relation(student.detach().float(), teacher)
    assert exact.item() == value.item()


def distillation(model, **changes):
    given = {"strength": 2.0, "relation": distances, "into": "embedding", "own": True, "others": {}}
    return Distillation(model, no_loss, **(given | changes))


def no_loss(size):
    raise AssertionError("this regulariser makes no loss")


@pytest.mark.parametrize("into", ["embedding", "fused"])
def test_the_teacher_is_the_backbone_as_it_was_and_stays_so(into):
    model = embedder()
    before = [tap.detach().clone() for tap in model.backbone.maps]
    regularizer = distillation(model, into=into).train()
    assert not [one for one in regularizer.parameters() if one.requires_grad]
    with torch.no_grad():
        for tap in model.backbone.maps:
            tap.add_(torch.randn_like(tap))
    batch = sight(model)
    student = batch.embedded.embedding if into == "embedding" else batch.embedded.fused.features
    wanted = 2.0 * distances(student, before[-1].mean((2, 3)))
    torch.testing.assert_close(regularizer(batch), wanted)
    regularizer(batch).backward()
    assert all(tap.grad.norm() > 0 for tap in model.backbone.maps)
    assert regularizer.new_layers() == []


def test_teachers_count_the_same_and_are_saved():
    model = embedder()
    both, single = distillation(model, own=True), distillation(model)
    torch.manual_seed(3)
    both.teachers.append(Maps().requires_grad_(False))
    batch = sight(model)
    terms = [
        distances(batch.embedded.embedding, teacher(None).final.mean((2, 3))) for teacher in both.teachers
    ]
    torch.testing.assert_close(both(batch), 2.0 * (terms[0] + terms[1]) / 2)
    with torch.no_grad():
        model.backbone.maps[2].zero_()
    changed = distillation(model)
    changed.load_state_dict(single.state_dict())
    torch.testing.assert_close(changed(batch), single(batch))


def test_real_networks_teach_without_batch_statistics_and_without_touching_the_student():
    def network(name):
        return Backbone(
            name,
            image_size=32,
            taps=["final"],
            weights="none",
            mean=None,
            std=None,
            options=None,
            frozen=False,
        )

    torch.manual_seed(0)
    model = embedder()
    model.backbone = network("resnet10t")
    model.fusion = nn.Identity()
    regularizer = distillation(model, others={"test_resnet": "none"}).train()
    state = {name: value.clone() for name, value in regularizer.state_dict().items()}
    images = torch.rand(4, 3, 32, 32)
    student = model.backbone.train()(images).final.mean((2, 3))
    assert regularizer.training
    assert not any(module.training for module in regularizer.teachers.modules())
    taught = [teacher(images).final.mean((2, 3)) for teacher in regularizer.teachers]
    frozen = regularizer.teachers[0]
    assert frozen is not model.backbone
    assert not torch.equal(taught[0], student)
    assert taught[0].shape != taught[1].shape
    assert all(torch.equal(state[name], value) for name, value in regularizer.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": 0.0}, r"regularizer.strength=0.0"),
        ({"into": "maps"}, r"regularizer.into=maps: choices are embedding, fused"),
        ({"own": False}, r"there is no teacher"),
    ],
)
def test_impossible_distillation_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        distillation(embedder(), **changes)


class Proxies(nn.Module):
    """Cross entropy of cosines to proxies, written out."""

    def __init__(self, size):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(CLASSES, size))

    def logits(self, embeddings):
        return 4 * functional.normalize(embeddings) @ functional.normalize(self.proxies).T

    def forward(self, embeddings, target, ids):
        return functional.cross_entropy(self.logits(embeddings), target)


def test_self_distillation_is_the_sum_of_the_paper():
    torch.manual_seed(0)
    model, loss = embedder(), Proxies(6)
    regularizer = SelfDistillation(model, Proxies, sizes=[10, 24], strength=5.0, temperature=0.7)
    assert [one.proxies.shape for one in regularizer.losses] == [(CLASSES, 10), (CLASSES, 24)]
    batch = sight(model, loss)
    features = batch.embedded.fused.features
    losses, divergences = [], []
    own = functional.normalize(batch.embedded.embedding)
    for branch, one in zip(regularizer.branches, regularizer.losses, strict=True):
        first, last = branch[0], branch[2]
        hidden = (features @ first.weight.T + first.bias).clamp(min=0)
        larger = functional.normalize(hidden @ last.weight.T + last.bias)
        losses.append(functional.cross_entropy(one.logits(larger), labels()))
        wanted = torch.softmax((larger @ larger.T).detach() / 0.7, dim=1)
        found = torch.log_softmax(own @ own.T / 0.7, dim=1)
        divergences.append(0.7**2 * (wanted * (wanted.log() - found)).sum() / IMAGES)
    whole = (batch.metric_loss + sum(losses) / 2) / 2 + 5.0 * sum(divergences) / 2
    torch.testing.assert_close(batch.metric_loss + regularizer(batch), whole)


def test_branches_and_their_losses_learn_but_the_distillation_alone_does_not_move_them():
    model = embedder()
    regularizer = SelfDistillation(model, Proxies, sizes=[10], strength=5.0, temperature=1.0)
    proxies = {id(one.proxies) for one in regularizer.losses}
    assert {id(one) for one in regularizer.new_layers()} == {id(p) for p in regularizer.branches.parameters()}
    assert {id(one) for one in regularizer.parameters()} - proxies == {
        id(p) for p in regularizer.new_layers()
    }
    batch = sight(model, Proxies(6))
    of_branch = regularizer.losses[0](
        model.scaled(regularizer.branches[0](batch.embedded.fused.features)), labels(), IDS
    )
    kinds = list(regularizer.parameters())
    wanted = torch.autograd.grad(of_branch / 2, kinds, retain_graph=True)
    found = torch.autograd.grad(regularizer(batch), kinds)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_branches_have_the_length_that_the_loss_sees():
    free = embedder(normalize=False)
    seen = []

    def loss(size):
        class Watches(nn.Module):
            def forward(self, embeddings, target, ids):
                seen.append(embeddings)
                return embeddings.square().sum()

        return Watches()

    for model in (free, embedder(layer_norm=True, normalize=False), embedder()):
        SelfDistillation(model, loss, sizes=[16], strength=1.0, temperature=1.0)(sight(model))
    lengths = [embeddings.norm(dim=1) for embeddings in seen]
    assert lengths[0].std() > 0
    torch.testing.assert_close(lengths[1], torch.full((IMAGES,), 4.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(lengths[2], torch.ones(IMAGES))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": []}, r"regularizer.sizes=\[\]"),
        ({"sizes": [0]}, r"regularizer.sizes=\[0\]"),
        ({"strength": -1.0}, r"regularizer.strength=-1.0"),
        ({"temperature": 0.0}, r"regularizer.temperature=0.0"),
    ],
)
def test_impossible_self_distillation_is_refused(changes, words):
    given = {"sizes": [8], "strength": 1.0, "temperature": 1.0} | changes
    with pytest.raises(ValueError, match=words):
        SelfDistillation(embedder(), Proxies, **given)


def test_an_object_with_proxies_cannot_be_the_loss_of_a_larger_branch():
    given = {"sizes": [8], "strength": 1.0, "temperature": 1.0}
    one = Proxies(6)
    with pytest.raises(ValueError, match=r"is an object \(Proxies\) with parameters"):
        SelfDistillation(embedder(), lambda size: one, **given)
    with pytest.raises(ValueError, match=r"is an object \(WeightedSum\) with parameters"):
        SelfDistillation(embedder(), lambda size: WeightedSum({"one": (1.0, one)}), **given)
    without = nn.Identity()
    assert SelfDistillation(embedder(), lambda size: without, **given).losses[0] is without


def soft_labels(target, others, share):
    """How much each of the 2B belongs to each class."""
    one, other = (functional.one_hot(torch.cat([target, part]), CLASSES) for part in (target, others))
    return share * one + (1 - share) * other


class Watched(EmbeddingMixup):
    """Keeps what it was given and drew."""

    def forward(self, batch):
        calls = []

        def watched(embeddings, target, ids):
            calls.append((embeddings, target, ids))
            return batch.metric(embeddings, target, ids)

        value = super().forward(RegularizerInput(**(vars(batch) | {"metric": watched})))
        self.calls = calls
        return value


def drawn(regularizer, batch):
    """Share and labels of the others, found from the mixtures alone."""
    (together, first, ids), (again, other, _) = regularizer.calls
    assert torch.equal(together, again)
    assert torch.equal(together[:IMAGES], batch.embedded.embedding)
    assert torch.equal(first, torch.cat([labels(), labels()]))
    assert torch.equal(ids[:IMAGES], IDS)
    assert len(set(ids.tolist())) == 2 * IMAGES
    assert ids[IMAGES:].max() < 0
    return together, other[IMAGES:]


def test_mixup_has_the_soft_target_of_cross_entropy():
    torch.manual_seed(0)
    model, loss = embedder(normalize=False), Proxies(6)
    regularizer = Watched(model, no_loss, strength=0.4, concentration=2.0)
    batch = sight(model, loss)
    value = regularizer(batch)
    together, others = drawn(regularizer, batch)
    assert (others != labels()).all()
    # Without normalisation a mixture lies on the line from its image to one of the other class.
    image = batch.embedded.embedding
    shares = []
    for index in range(IMAGES):
        fits = []
        for other in torch.nonzero(labels() == others[index]).flatten():
            line = image[index] - image[other]
            share = (together[IMAGES + index] - image[other]) @ line / (line @ line)
            fits.append(((image[other] + share * line - together[IMAGES + index]).norm(), share))
        miss, share = min(fits, key=lambda fit: fit[0].item())
        assert miss < 1e-5
        shares.append(share.item())
    share = shares[0]
    assert 0 < share < 1
    assert shares == pytest.approx([share] * IMAGES, abs=1e-4)
    soft = functional.cross_entropy(loss.logits(together), soft_labels(labels(), others, share))
    torch.testing.assert_close(batch.metric_loss + value, 0.6 * batch.metric_loss + 0.4 * soft)


def test_mixup_interpolates_the_labels_of_pairs():
    """A sum over pairs: the pair (i, j) is a positive to the share to which both labellings say so."""
    positive, negative = (lambda d: d.square()), (lambda d: (1.5 - d).clamp(min=0))

    def pairs(embeddings, target, ids):
        apart = (embeddings[:, None] - embeddings[None, :]).norm(dim=2)
        same = target[:, None] == target[None, :]
        return torch.where(same, positive(apart), negative(apart)).sum()

    torch.manual_seed(0)
    model = embedder()
    regularizer = Watched(model, no_loss, strength=1.0, concentration=2.0)
    regularizer.share = torch.distributions.Uniform(0.3, 0.3 + 1e-7)
    batch = sight(model, pairs)
    value = regularizer(batch) + batch.metric_loss
    together, others = drawn(regularizer, batch)
    points = together.detach().double().numpy()
    one, other = (torch.cat([labels(), part]).tolist() for part in (labels(), others))
    wanted = 0.0
    for i in range(2 * IMAGES):
        for j in range(2 * IMAGES):
            apart = np.linalg.norm(points[i] - points[j])
            share = 0.3 * (one[i] == one[j]) + 0.7 * (other[i] == other[j])
            wanted += share * apart**2 + (1 - share) * max(0.0, 1.5 - apart)
    assert value.item() == pytest.approx(wanted, rel=1e-4)
    assert torch.linalg.norm(together, dim=1).tolist() == pytest.approx([1.0] * 2 * IMAGES, abs=1e-5)


def test_mixup_goes_with_a_loss_of_pytorch_metric_learning_and_moves_the_network():
    function = ContrastiveLoss()
    model = embedder()
    batch = sight(model, lambda embeddings, target, ids: function(embeddings, target))
    EmbeddingMixup(model, no_loss, strength=0.5, concentration=2.0)(batch).backward()
    assert model.projection.weight.grad.norm() > 0


def test_mixup_repeats_with_the_generator_of_torch_and_a_batch_of_one_class_mixes_nothing():
    model = embedder()
    regularizer = EmbeddingMixup(model, no_loss, strength=0.5, concentration=2.0)
    batch = sight(model)
    state = torch.get_rng_state()
    first = regularizer(batch)
    assert regularizer(batch).item() != first.item()
    torch.set_rng_state(state)
    assert regularizer(batch).item() == first.item()
    one_class = torch.zeros(IMAGES, dtype=torch.int64)
    alone = regularizer(sight(model, lambda embeddings, *_: embeddings.sum(), target=one_class))
    assert alone.item() == 0
    assert alone.requires_grad
    assert not regularizer.state_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": 1.5}, r"strength=1.5: the share of the mixed loss is at most 1"),
        ({"strength": 0.0}, r"strength=0.0"),
        ({"concentration": 0.0}, r"concentration=0.0"),
    ],
)
def test_impossible_mixup_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EmbeddingMixup(embedder(), no_loss, **({"strength": 0.5, "concentration": 2.0} | changes))


def test_fused_features_are_of_the_size_that_branches_expect():
    regularizer = SelfDistillation(embedder(), Proxies, sizes=[8], strength=1.0, temperature=1.0)
    assert regularizer.branches[0][0].in_features == FUSED


def test_introspection_puts_the_changed_loss_in_the_place_of_the_plain_one():
    model = embedder()
    plain, change = as_metric_loss(ContrastiveLoss()), functools.partial(introspective, bias=4, temperature=5)
    made = Introspection(model, lambda size: plain, introspective=change)
    batch = sight(model, plain)
    total = batch.metric_loss + made(batch)
    uncertain = functional.normalize(made.uncertainty(batch.embedded.fused.features), dim=1)
    both = torch.cat([batch.embedded.embedding, uncertain], dim=1)
    wanted = change(plain)(both, labels(), IDS)
    torch.testing.assert_close(total, wanted)
    weights = [model.projection.weight, made.uncertainty.weight]
    for mine, theirs in zip(
        torch.autograd.grad(total, weights, retain_graph=True),
        torch.autograd.grad(wanted, weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 0
    assert made.new_layers() == list(made.uncertainty.parameters())
