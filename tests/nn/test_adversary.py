"""The adversaries against autograd, loops and formulas: who gets which gradient, and how strong."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from tests.nn.adversaries import (
    CLASSES,
    FINAL,
    FUSED,
    IMAGES,
    SIZE,
    TAPS,
    batch_of,
    embedder,
    labels,
    metric,
    settings,
)
from torch.nn import functional

from unseen.nn.adversary import (
    AdversarialAttention,
    AdversarialVirtualClasses,
    Auxiliary,
    ComplementaryEvidence,
    Confusion,
    CosineHead,
    Erasure,
    EvidenceMasking,
    GradientReversal,
    PosteriorConfusion,
    ProjectionConfusion,
    RandomGradient,
    SharedCharacteristics,
    TapMasking,
    constant,
    dann,
    linear,
)
from unseen.nn.adversary.attention import at_scores, noise, shuffled, toward_confusion
from unseen.nn.adversary.erasure import fisher_directions, scatter
from unseen.nn.adversary.masking import of_chance, of_class, of_other_class, of_size
from unseen.nn.adversary.shared import at_random, by_cluster, correlations
from unseen.nn.adversary.virtual_classes import any_pair, most_confused
from unseen.nn.fusion import Fused, LastMap, PooledTaps

PLAIN = {"per_image": False, "without_conflict": False}
SHARED = {"size": 5, "clusters": 3, "momentum": 0.5, "uniformity": 1.0, "decorrelation": 1.0}
FORMS = {
    "reversal": partial(GradientReversal, **PLAIN),
    "repaired": partial(GradientReversal, per_image=True, without_conflict=True),
    "confusion": partial(Confusion, **PLAIN),
    "auxiliary": partial(Auxiliary, **PLAIN),
    "random": partial(RandomGradient, **PLAIN),
    "attention": partial(AdversarialAttention, step=4.0, direction=toward_confusion),
    "shuffled": partial(AdversarialAttention, step=4.0, direction=shuffled),
    "noise": partial(AdversarialAttention, step=4.0, direction=noise),
    "masking": partial(EvidenceMasking, share=0.3, evidence=of_class),
    "chance": partial(EvidenceMasking, share=0.3, evidence=of_chance),
    "another": partial(EvidenceMasking, share=0.3, evidence=of_other_class),
    "size": partial(EvidenceMasking, share=0.3, evidence=of_size),
    "complementary": partial(ComplementaryEvidence, share=0.3, evidence=of_class, **PLAIN),
    "complementary_chance": partial(ComplementaryEvidence, share=0.3, evidence=of_chance, **PLAIN),
    "taps": partial(TapMasking, evidence=of_class),
    "any_tap": partial(TapMasking, evidence=of_chance),
    "energy": partial(ProjectionConfusion, normalized=True),
    "virtual": partial(AdversarialVirtualClasses, mixing=0.5, pairs_per_class=0.5, choice=most_confused),
    "any_pair": partial(AdversarialVirtualClasses, mixing=0.5, pairs_per_class=0.5, choice=any_pair),
    "shared": partial(SharedCharacteristics, grouping=by_cluster, **SHARED),
    "dealt": partial(SharedCharacteristics, grouping=at_random, **SHARED),
}
OF_EMBEDDINGS = {
    "erasure": partial(Erasure, largest=3, momentum=0.5, every=1, random_frame=False),
    "frames": partial(Erasure, largest=3, momentum=0.5, every=1, random_frame=True),
    "posterior": PosteriorConfusion,
}


def made(form, **changes):
    torch.manual_seed(0)
    if form in OF_EMBEDDINGS:
        return OF_EMBEDDINGS[form](SIZE, CLASSES, **settings(sees="embedding", **changes))
    return FORMS[form](FUSED, CLASSES, **settings(**changes))


def struck(form, strength, **changes):
    """The embedder's gradients that the blow alone gives, the head's gradients, and the output."""
    adversary, model = made(form, **changes), embedder()
    output = adversary(batch_of(model), strength)
    of_model = torch.autograd.grad(
        output.loss, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    of_head = torch.autograd.grad(output.loss, list(adversary.head.parameters()))
    return of_model, of_head, output


EVERY = [*FORMS, *OF_EMBEDDINGS]


@pytest.mark.parametrize("form", EVERY)
def test_the_head_learns_by_plain_cross_entropy_whatever_the_form_and_its_strength(form):
    adversary, model = made(form), embedder()
    features = adversary.seen_features(batch_of(model).embedded)
    wanted = torch.autograd.grad(
        functional.cross_entropy(adversary.head(features.detach()), labels()),
        list(adversary.head.parameters()),
    )
    for strength in (0.0, 0.7):
        _, of_head, _ = struck(form, strength)
        for mine, plain in zip(of_head, wanted, strict=True):
            torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("form", EVERY)
def test_without_strength_the_embedder_is_left_alone_and_with_it_it_is_not(form):
    still, _, _ = struck(form, 0.0)
    assert all(gradient is None for gradient in still)
    moved, _, output = struck(form, 0.5)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in moved)
    assert output.logits.shape == (IMAGES, CLASSES)
    assert output.loss.ndim == 0


@pytest.mark.parametrize("form", EVERY)
def test_the_gradient_grows_in_proportion_to_the_strength(form):
    torch.manual_seed(5)
    one, _, _ = struck(form, 0.2)
    torch.manual_seed(5)
    two, _, _ = struck(form, 0.4)
    for small, large in zip(one, two, strict=True):
        if small is not None:
            torch.testing.assert_close(2 * small, large, rtol=1e-3, atol=1e-6)


def test_in_silent_epochs_there_is_no_strength():
    adversary = made("reversal", silent_epochs=2, strength=0.3)
    assert [adversary.strength_at(0.5, epoch) for epoch in range(4)] == [0, 0, 0.3, 0.3]


def test_schedules_follow_their_formulas():
    for progress in (0.0, 0.1, 0.5, 1.0):
        assert constant(progress, maximum=0.3) == 0.3
        assert linear(progress, maximum=0.3) == pytest.approx(0.3 * progress)
        assert dann(progress, maximum=0.3) == pytest.approx(0.3 * (2 / (1 + math.exp(-10 * progress)) - 1))
    assert dann(0.0, maximum=1.0) == 0.0
    assert dann(1.0, maximum=1.0) == pytest.approx(1, abs=1e-4)


def test_the_head_does_not_see_the_length_of_features():
    head = CosineHead(FUSED, CLASSES, hidden=7, scale=16)
    features = torch.randn(5, FUSED)
    torch.testing.assert_close(head(features), head(features * torch.tensor([[0.01], [1], [3], [50], [1e3]])))
    assert head(features).abs().max() <= 16


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("reversal", {"hidden": 0}, "hidden=0"),
        ("reversal", {"scale": 0.0}, r"scale=0\.0"),
        ("reversal", {"silent_epochs": -1}, "silent_epochs=-1"),
        ("reversal", {"sees": "pixels"}, "'pixels'.*'fused' or 'embedding'"),
        ("reversal", {"strength": -1.0}, r"maximum=-1\.0"),
        ("attention", {"step": 0.0}, r"step=0\.0"),
        ("attention", {"sees": "embedding"}, "'embedding'.*'fused'"),
        ("masking", {"share": 1.0}, r"share=1\.0"),
        ("masking", {"sees": "embedding"}, "'embedding'.*'fused'"),
        ("complementary", {"share": 0.0}, r"share=0\.0"),
        ("complementary", {"sees": "embedding"}, "'embedding'.*'fused'"),
        ("shared", {"clusters": 1}, "clusters=1"),
        ("shared", {"momentum": 1.0}, r"momentum=1\.0"),
        ("shared", {"uniformity": -1.0}, r"uniformity=-1\.0"),
        ("shared", {"decorrelation": -1.0}, r"decorrelation=-1\.0"),
        ("shared", {"sees": "embedding"}, "'embedding'.*'fused'"),
        ("virtual", {"mixing": 0.0}, r"mixing=0\.0"),
        ("virtual", {"pairs_per_class": 0.0}, r"pairs_per_class=0\.0"),
    ],
)
def test_impossible_settings_are_refused(form, changes, words):
    with pytest.raises(ValueError, match=words):
        made(form, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"largest": SIZE}, "largest=6"), ({"momentum": 1.0}, "momentum=1"), ({"every": 0}, "every=0")],
)
def test_impossible_settings_of_erasure_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        made("erasure", **changes)


def test_forms_of_the_embedding_refuse_fused_features():
    for form in OF_EMBEDDINGS.values():
        with pytest.raises(ValueError, match="'fused'"):
            form(SIZE, CLASSES, **settings())


# ---- gradients at the features


def at_features(form, strength, **changes):
    """The adversary, the fused features, and the gradients there of the metric loss and of the blow."""
    adversary, model = made(form, **changes), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features
    [of_metric] = torch.autograd.grad(batch.metric_loss, features, retain_graph=True)
    output = adversary(batch, strength)
    [blow] = torch.autograd.grad(output.loss, features, retain_graph=True)
    return adversary, features, of_metric, blow


@pytest.mark.parametrize("strength", [0.05, 0.3])
@pytest.mark.parametrize(("form", "sign"), [("reversal", -1), ("auxiliary", 1)])
def test_reversal_and_its_opposite_have_a_share_of_the_metric_gradients_length(form, sign, strength):
    adversary, features, of_metric, blow = at_features(form, strength)
    [plain] = torch.autograd.grad(functional.cross_entropy(adversary.head(features), labels()), features)
    assert blow.norm().item() == pytest.approx(strength * of_metric.norm().item(), rel=1e-4)
    cosine = functional.cosine_similarity(blow.flatten(), sign * plain.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-5)


def test_confusion_climbs_the_entropy_of_the_posterior():
    adversary, features, of_metric, blow = at_features("confusion", 0.2)
    posterior = adversary.head(features).softmax(1)
    entropy = -(posterior * posterior.log()).sum()
    [climb] = torch.autograd.grad(entropy, features)
    cosine = functional.cosine_similarity(blow.flatten(), -climb.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    assert blow.norm().item() == pytest.approx(0.2 * of_metric.norm().item(), rel=1e-4)


def test_repaired_reversal_never_opposes_the_metric_loss_and_is_measured_image_by_image():
    # Logits of this scale leave every gradient of the plain cross entropy far from underflow.
    adversary, features, of_metric, blow = at_features("repaired", 0.1, scale=2.0)
    plain = torch.stack(
        [
            torch.autograd.grad(
                functional.cross_entropy(adversary.head(features[i : i + 1]), labels()[i : i + 1]),
                features,
                retain_graph=True,
            )[0][i]
            for i in range(IMAGES)
        ]
    )
    opposed = 0
    for mine, other, goal in zip(blow, -plain, of_metric, strict=True):
        along = float(other @ goal)
        wanted = other - along / float(goal @ goal) * goal if along < 0 else other
        opposed += along < 0
        torch.testing.assert_close(mine, 0.1 * goal.norm() * wanted / wanted.norm(), rtol=1e-3, atol=1e-6)
        assert float(mine @ goal) >= -1e-6
    assert 0 < opposed < IMAGES, "the case must occur, and its opposite"


def test_a_metric_loss_without_gradient_leaves_nothing_to_be_relative_to():
    adversary, model = made("reversal"), embedder()
    batch = batch_of(model)
    zero = batch.metric_loss * 0
    output = adversary(
        type(batch)(batch.embedded, model, batch.labels, zero, batch.metric, batch.metric_among), 0.5
    )
    [blow] = torch.autograd.grad(output.loss, batch.embedded.fused.features)
    assert torch.equal(blow, torch.zeros_like(blow))


# ---- spoiled embeddings


def test_the_chain_rule_to_the_scores_is_autograds():
    model = embedder()
    fused = model(torch.zeros(IMAGES, 3, 1, 1)).fused
    probe = torch.randn(FUSED, CLASSES)
    objective = (fused.features @ probe).softmax(1).square().sum()
    [at_features_] = torch.autograd.grad(objective, fused.features, retain_graph=True)
    wanted = torch.cat(torch.autograd.grad(objective, list(fused.scores)), dim=1)
    torch.testing.assert_close(at_scores(at_features_, fused), wanted, rtol=1e-4, atol=1e-6)


def test_the_chain_rule_to_the_scores_is_in_float32_whatever_the_precision():
    fused = embedder()(torch.zeros(IMAGES, 3, 1, 1)).fused
    gradient = torch.randn(IMAGES, FUSED)
    wanted = at_scores(gradient, fused)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(at_scores(gradient, fused), wanted)


def test_adversarial_attention_raises_the_heads_doubt_more_than_its_controls_do():
    def doubt(form):
        adversary, model = made(form), embedder()
        train_head(adversary, model)
        adversary.step = 1.0
        batch = batch_of(model)
        seen = []
        model.embed_features = lambda features: seen.append(features) or model.projection(features)
        for _ in range(20):
            adversary.spoiled(batch, batch.embedded.fused.features)
        before, *after = (
            torch.distributions.Categorical(logits=adversary.head(f)).entropy().mean().item()
            for f in (batch.embedded.fused.features, *seen)
        )
        return sum(after) / len(after) - before

    assert doubt("attention") > 0.01
    assert doubt("attention") > 1.2 * abs(doubt("shuffled"))
    assert doubt("attention") > 1.2 * abs(doubt("noise"))


def test_the_controls_of_attention_move_each_tap_as_much_as_the_adversary_does():
    adversary, model = made("attention"), embedder()
    batch, asked = batch_of(model), []
    adversary.direction = lambda gradient: asked.append(gradient) or gradient
    adversary.spoiled(batch, batch.embedded.fused.features)
    assert [part.shape for part in asked] == [scores.shape for scores in batch.embedded.fused.scores]
    gradient = torch.randn(7, 900) * torch.tensor([0.01, 1, 100, 3, 0.2, 5, 0])[:, None]
    as_large = noise(gradient).square().mean(1).sqrt()
    torch.testing.assert_close(as_large, gradient.square().mean(1).sqrt(), rtol=0.15, atol=0)
    assert torch.equal(shuffled(gradient).sort(1).values, gradient.sort(1).values)


def train_head(adversary, model, steps=60):
    optimizer = torch.optim.Adam(adversary.head.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        adversary(batch_of(model), 0.0).loss.backward()
        optimizer.step()


def test_adversarial_attention_by_hand():
    adversary, model = made("attention"), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features
    scores = [s.detach().requires_grad_() for s in batch.embedded.fused.scores]
    maps = zip(model.fusion.projections, batch.embedded.maps.taps, strict=True)
    projected = [project(tap).flatten(2) for project, tap in maps]
    pooled = [
        torch.einsum("bcp,bp->bc", m.detach(), s.softmax(1)) for m, s in zip(projected, scores, strict=True)
    ]
    posterior = adversary.head(torch.cat(pooled, 1)).softmax(1)
    gradient = torch.autograd.grad(-(posterior * posterior.log()).sum(), scores)
    rows = []
    for image in range(IMAGES):
        largest = max(g[image].abs().max() for g in gradient)
        parts = [
            m[image] @ (s[image] + 4 * g[image] / largest).softmax(0)
            for m, s, g in zip(projected, scores, gradient, strict=True)
        ]
        rows.append(torch.cat(parts))
    wanted = functional.normalize(model.projection(torch.stack(rows)), dim=1)
    torch.testing.assert_close(adversary.spoiled(batch, features), wanted, rtol=1e-4, atol=1e-5)
    loss = adversary.strike(batch, features, 0.3)
    torch.testing.assert_close(
        loss, 0.3 * (metric(wanted, labels()) - batch.metric_loss), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fusion", [LastMap, PooledTaps])
def test_adversarial_attention_works_where_pooling_is_a_mean(fusion):
    model = embedder(fusion)
    torch.manual_seed(0)
    adversary = FORMS["attention"](model.fusion.out_features, CLASSES, **settings())
    assert adversary(batch_of(model), 0.5).loss.isfinite()


def test_a_fusion_that_pools_nothing_is_refused_in_words():
    model = embedder()
    batch = batch_of(model)
    bare = batch.embedded._replace(fused=batch.embedded.fused._replace(positions=(), scores=()))
    batch = type(batch)(bare, model, batch.labels, batch.metric_loss, batch.metric, batch.metric_among)
    with pytest.raises(ValueError, match="pools no positions"):
        made("attention")(batch, 0.5)


def silenced(form):
    """Fused features, what is left of them, and the evidence of each channel, all by image."""
    adversary, model = made(form), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features
    seen = []
    model.embed_features = lambda masked: seen.append(masked) or model.projection(masked)
    adversary.spoiled(batch, features)
    evidence = []
    for image in range(IMAGES):
        leaf = features[image : image + 1].detach().requires_grad_()
        [gradient] = torch.autograd.grad(adversary.head(leaf)[0, labels()[image]], leaf)
        evidence.append((leaf * gradient)[0].detach())
    return features, seen[0], evidence


def test_masking_silences_the_channels_with_the_clearest_evidence():
    features, left, evidence = silenced("masking")
    count = round(0.3 * FUSED)
    for image in range(IMAGES):
        gone = set(evidence[image].topk(count).indices.tolist())
        assert set((left[image] == 0).nonzero()[:, 0].tolist()) == gone
        kept = [d for d in range(FUSED) if d not in gone]
        assert torch.equal(left[image, kept], features[image, kept])


def clearest(head, features, label):
    """By autograd alone: the channels of one image that contribute most to the logit of a class."""
    leaf = features.detach()[None].requires_grad_()
    [gradient] = torch.autograd.grad(head(leaf)[0, label], leaf)
    return set((leaf * gradient)[0].topk(round(0.3 * FUSED)).indices.tolist())


def test_complementary_evidence_descends_the_cross_entropy_without_the_clearest_channels():
    adversary, model = made("complementary"), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features
    [metric_gradient] = torch.autograd.grad(batch.metric_loss, features, retain_graph=True)
    struck_at = adversary.strike(batch, features, 0.4)
    [found] = torch.autograd.grad(struck_at, features)
    kept = torch.ones(IMAGES, FUSED)
    for image in range(IMAGES):
        kept[image, list(clearest(adversary.head, features[image], labels()[image]))] = 0
    leaf = features.detach().requires_grad_()
    [wanted] = torch.autograd.grad(functional.cross_entropy(adversary.head(leaf * kept), labels()), leaf)
    wanted *= 0.4 * metric_gradient.norm() / wanted.norm()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert struck_at.item() == 0


def test_the_closest_control_takes_the_evidence_for_another_class_at_the_images_own_features():
    head = made("another").head
    features, left, _ = silenced("another")
    for image in range(IMAGES):
        gone = set((left[image] == 0).nonzero()[:, 0].tolist())
        others = [c for c in labels().unique().tolist() if c != labels()[image]]
        assert gone in [clearest(head, features[image], c) for c in others]


def test_the_other_class_is_drawn_for_each_image_among_those_of_the_batch():
    target = torch.tensor([0, 0, 5, 9])
    drawn = [of_other_class(torch.randn(4, 3), target, lambda classes: classes).tolist() for _ in range(200)]
    assert [set(found) for found in zip(*drawn, strict=True)] == [{5, 9}, {5, 9}, {0, 9}, {0, 5}]


def test_a_batch_of_one_class_has_no_other_evidence_than_its_own():
    features, same = torch.randn(3, 5), torch.full((3,), 2)
    assert of_other_class(features, same, lambda classes: classes).tolist() == [2, 2, 2]


def test_the_control_of_size_silences_the_largest_channels():
    features, left, _ = silenced("size")
    for image in range(IMAGES):
        gone = (left[image] == 0).nonzero()[:, 0].tolist()
        wanted = np.argsort(features[image].detach().abs().numpy())[-round(0.3 * FUSED) :]
        assert sorted(gone) == sorted(wanted)


def test_the_tap_with_the_clearest_evidence_is_silenced_whole():
    features, left, evidence = silenced("taps")
    chosen = []
    for image in range(IMAGES):
        tap = int(evidence[image].reshape(len(TAPS), FINAL).mean(1).argmax())
        wanted = features[image].detach().clone()
        wanted[tap * FINAL : (tap + 1) * FINAL] = 0
        torch.testing.assert_close(left[image], wanted)
        chosen.append(tap)
    assert set(chosen) == {0, 1}, "it must depend on the image"


def test_one_tap_alone_cannot_be_silenced():
    model = embedder(LastMap)
    adversary = FORMS["taps"](model.fusion.out_features, CLASSES, **settings())
    with pytest.raises(ValueError, match="this fusion has 1"):
        adversary(batch_of(model), 0.0)  # in the silent epoch already


def test_fisher_directions_are_those_of_scipys_generalised_eigenproblem():
    torch.manual_seed(3)
    embeddings, target = torch.randn(60, SIZE), torch.arange(60) % 5
    embeddings[:, 2] += 3 * target
    within, between = scatter(embeddings, target)
    x, y = embeddings.numpy(), target.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(5)])
    by_hand_within = sum(np.outer(v - means[c], v - means[c]) for v, c in zip(x, y, strict=True)) / 60
    by_hand_between = sum(np.outer(means[c] - x.mean(0), means[c] - x.mean(0)) for c in y) / 60
    np.testing.assert_allclose(within, by_hand_within, atol=1e-4)
    np.testing.assert_allclose(between, by_hand_between, atol=1e-4)
    regular = by_hand_within + 0.1 * np.trace(by_hand_within) / SIZE * np.eye(SIZE)
    _, vectors = eigh(by_hand_between, regular)
    found = fisher_directions(within, between, 3).numpy()
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-5)
    for rank in (1, 2, 3):
        leading = np.linalg.qr(vectors[:, ::-1][:, :rank])[0]
        np.testing.assert_allclose(found[:, :rank] @ found[:, :rank].T, leading @ leading.T, atol=1e-3)


def test_erased_embeddings_hold_nothing_of_the_drawn_directions():
    adversary, model = made("erasure"), embedder()
    batch = batch_of(model)
    adversary(batch, 0.0)
    features = batch.embedded.embedding
    ranks = set()
    for seed in range(20):
        torch.manual_seed(seed)
        spoiled = adversary.spoiled(batch, features)
        torch.testing.assert_close(spoiled.norm(dim=1), torch.ones(IMAGES))
        inside = (spoiled @ adversary.basis).abs().amax(dim=0)
        gone = [column for column in range(3) if inside[column] < 1e-5]
        assert gone, "at least the first"
        assert gone == list(range(len(gone))), "the leading ones, without a hole"
        ranks.add(len(gone))
    assert ranks == {1, 2, 3}


# ---- the last projection alone


@pytest.mark.parametrize("form", ["energy", "posterior"])
def test_confusion_at_the_projection_moves_nothing_before_it(form):
    adversary, model = made(form), embedder()
    adversary(batch_of(model), 0.5).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize(("normalized", "layer_norm"), [(True, False), (True, True), (False, False)])
def test_the_energy_is_the_log_of_the_mean_over_pairs_of_different_classes(normalized, layer_norm):
    adversary, model = made("energy", normalized=normalized), embedder()
    model.layer_norm = layer_norm
    batch = batch_of(model)
    vectors = batch.embedded.embedding if normalized else model.projection(batch.embedded.fused.features)
    halves = [
        0.5 * (vectors[i] - vectors[j]).square().sum().item()
        for i in range(IMAGES)
        for j in range(IMAGES)
        if labels()[i] != labels()[j]
    ]
    wanted = 0.25 * math.log(sum(halves) / len(halves))
    assert adversary.strike(batch, batch.embedded.fused.features, 0.25).item() == pytest.approx(
        wanted, rel=1e-4
    )


def test_the_energy_of_features_that_are_almost_alike_is_exact_in_bfloat16():
    adversary, model = made("energy"), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features
    alike = features.mean(0) + 0.01 * (features - features.mean(0))
    fused = batch.embedded.fused._replace(features=alike.detach())
    batch = replace(batch, embedded=batch.embedded._replace(fused=fused))

    wanted = adversary.strike(batch, alike, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = adversary.strike(batch, alike, 1.0)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(one, model.projection.weight) for one in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("form", ["reversal", "repaired", "confusion", "auxiliary", "random"])
def test_where_nothing_that_learns_comes_before_the_features_a_gradient_adversary_only_watches(form):
    adversary, model = made(form), embedder()
    batch = batch_of(model)
    features = batch.embedded.fused.features.detach()
    still = replace(batch, embedded=batch.embedded._replace(fused=Fused(features, [])))
    output = adversary(still, 0.5)
    output.loss.backward()
    assert output.loss > 0, "its head learns"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_posterior_is_driven_to_uniform():
    adversary, model = made("posterior"), embedder()
    batch = batch_of(model)
    posterior = adversary.head(batch.embedded.embedding).softmax(1).detach().numpy()
    divergence = (1 / CLASSES * np.log(1 / CLASSES / posterior)).sum(1).mean()
    assert adversary.strike(batch, batch.embedded.embedding, 2.0).item() == pytest.approx(
        2 * divergence, rel=1e-4
    )


# ---- virtual classes


def test_correlations_are_numpys():
    one, other = torch.randn(20, 4), torch.randn(20, 3)
    wanted = np.corrcoef(one.numpy(), other.numpy(), rowvar=False)[:4, 4:]
    np.testing.assert_allclose(correlations(one, other), wanted, atol=1e-5)


def test_the_shared_branch_learns_clusters_that_cut_across_classes():
    """Features = class + one of three ways to be shown, which no class owns: the clusters are the ways."""
    torch.manual_seed(0)
    classes, ways = 5 * torch.randn(CLASSES, FUSED), torch.randn(3, FUSED)
    adversary = made("shared", clusters=3, momentum=0.9)
    for _ in range(60):
        label, way = torch.randint(CLASSES, (64,)), torch.randint(3, (64,))
        features = classes[label] + ways[way] + 0.05 * torch.randn(64, FUSED)
        adversary._follow(functional.normalize(features, dim=1), label)
        found = adversary._clusters(adversary._standardized(features, label))
    assert {len(set(found[way == one].tolist())) for one in range(3)} == {1}
    assert len(set(found.tolist())) == 3


def test_the_shared_branch_knows_the_deviation_within_classes_from_the_first_batch():
    adversary = made("shared", momentum=0.9)
    features = functional.normalize(torch.randn(64, FUSED), dim=1)
    label = torch.arange(64) % CLASSES
    adversary._follow(features, label)
    around = features - torch.stack([features[label == one].mean(dim=0) for one in range(CLASSES)])[label]
    torch.testing.assert_close(adversary.variance, around.square().mean(dim=0))


def test_the_shared_branch_is_added_as_its_formula_says():
    adversary, model = made("shared"), embedder()
    batch = batch_of(model)
    adversary(batch, 0.0)
    features = adversary.seen_features(batch.embedded)
    adversary.centres.copy_(functional.normalize(torch.randn_like(adversary.centres), dim=1))
    standardized = adversary._standardized(batch.embedded.fused.features, batch.labels)
    clusters = (standardized @ adversary.centres.T).argmax(dim=1)
    loss = adversary.strike(batch, features, 0.3)
    unit = functional.normalize(features, dim=1)
    logits = 2.0 * unit @ functional.normalize(adversary.surrogates, dim=1).T
    surrogate = -logits.log_softmax(dim=1)[torch.arange(IMAGES), clusters].mean()
    uniform = -adversary.head(features).log_softmax(dim=1).mean()
    rho = np.corrcoef(batch.embedded.embedding.detach(), features.detach(), rowvar=False)[:SIZE, SIZE:]
    wanted = 0.3 * ((surrogate + uniform).item() + (rho**2).mean())
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_the_control_of_the_shared_branch_deals_the_same_clusters():
    clusters = torch.arange(50) % 7
    dealt = at_random(clusters)
    assert sorted(dealt.tolist()) == sorted(clusters.tolist())
    assert dealt.tolist() != clusters.tolist()
    assert by_cluster(clusters) is clusters


def test_virtual_classes_lie_between_the_pairs_that_the_head_confuses_most():
    adversary, model = made("virtual"), embedder()
    seen = []
    batch = batch_of(model, among=lambda virtual: seen.append(virtual) or virtual.embeddings.sum())
    adversary(batch, 0.5)
    [virtual] = seen
    posterior = adversary.head(batch.embedded.fused.features).softmax(1)
    target = labels()
    confusion = {
        (a, b): (posterior[target == a][:, b].mean() + posterior[target == b][:, a].mean()).item()
        for a in range(CLASSES)
        for b in range(a + 1, CLASSES)
    }
    wanted = sorted(confusion, key=confusion.get, reverse=True)[:2]
    assert [tuple(pair) for pair in virtual.pairs.tolist()] == wanted
    embedding = batch.embedded.embedding
    for number, (a, b) in enumerate(wanted):
        between = functional.normalize(0.5 * embedding[target == a] + 0.5 * embedding[target == b], dim=1)
        torch.testing.assert_close(virtual.embeddings[virtual.labels == number], between)
    assert virtual.num_classes == CLASSES


def test_a_batch_of_one_class_has_no_virtual_classes():
    adversary, model = made("virtual"), embedder()
    batch = batch_of(model)
    one = torch.zeros_like(batch.labels)
    alone = type(batch)(batch.embedded, model, one, batch.metric_loss, batch.metric, batch.metric_among)
    assert adversary.strike(alone, batch.embedded.fused.features, 0.5).item() == 0


# ---- why neither smoothing nor raw lengths are in the contract


def test_climbing_a_smoothed_cross_entropy_raises_the_confidence_of_a_sure_head():
    """C = 51, smoothing 0.1: its minimum is at p_y = 1 − 0.1 + 0.1 / 51 = 0.902."""

    def confidence_after_climbing(probability, smoothing):
        rest = (1 - probability) / 50
        logits = torch.log(torch.tensor([[probability] + [rest] * 50])).requires_grad_()
        loss = functional.cross_entropy(logits, torch.tensor([0]), label_smoothing=smoothing)
        [gradient] = torch.autograd.grad(loss, logits)
        return (logits + 0.1 * gradient).softmax(1)[0, 0].item()

    assert confidence_after_climbing(0.95, 0.1) > 0.95
    assert confidence_after_climbing(0.85, 0.1) < 0.85
    assert confidence_after_climbing(0.9 + 0.1 / 51, 0.1) == pytest.approx(0.9 + 0.1 / 51, abs=1e-5)
    assert confidence_after_climbing(0.95, 0.0) < 0.95


def test_a_head_on_raw_features_is_fooled_by_their_length_and_ours_is_not():
    torch.manual_seed(0)
    raw = torch.nn.Sequential(torch.nn.Linear(FUSED, 40), torch.nn.ReLU(), torch.nn.Linear(40, CLASSES))
    ours = CosineHead(FUSED, CLASSES, hidden=40, scale=16)
    features, target = torch.randn(200, FUSED), torch.arange(200) % CLASSES
    features[torch.arange(200), target] += 3
    for head in (raw, ours):
        optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            functional.cross_entropy(head(features), target).backward()
            optimizer.step()

    def doubt(head, scale):
        return functional.cross_entropy(head(scale * features), target).item()

    assert doubt(raw, 0.01) > 10 * doubt(raw, 1)
    assert doubt(ours, 0.01) == pytest.approx(doubt(ours, 1), rel=1e-3)
