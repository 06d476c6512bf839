"""Fusions against loops over positions, and the finding that the published attention ignores its query."""

import numpy as np
import pytest
import torch

from unseen.nn.backbone import FeatureMaps
from unseen.nn.fusion import (
    AttentionFusion,
    Fused,
    LastMap,
    LowRankAttention,
    PooledTaps,
    additive_score,
    dot_score,
    tanh_score,
)

CHANNELS, FINAL = [3, 6, 5], 6
SHAPES = [(5, 4), (3, 3), (2, 1)]


def maps(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    taps = [
        torch.randn(batch, channels, *shape, generator=generator)
        for channels, shape in zip(CHANNELS, SHAPES, strict=True)
    ]
    return FeatureMaps(taps, torch.randn(batch, FINAL, 2, 2, generator=generator))


def fusion(score, per_tap=False, jitter=0.0):
    torch.manual_seed(1)
    made = AttentionFusion(CHANNELS, FINAL, score=score, per_tap=per_tap, jitter=jitter)
    torch.nn.init.normal_(made.weights)  # they start at zero, where every score is the same
    return made


def score_of(name, position, query, weight):
    if name == "additive":
        return weight @ (position + query)
    if name == "tanh":
        return weight @ np.tanh(position + query)
    return (weight * position) @ query / np.sqrt(len(query))


def by_loops(module, given, name):
    features, attention = [], []
    for image in range(len(given.final)):
        query = given.final[image].numpy().mean((1, 2))
        row, weights_of_taps = [], []
        for tap, project in enumerate(module.projections):
            field = given.taps[tap][image].numpy()
            kernel = (
                project.weight[:, :, 0, 0].detach().numpy() if hasattr(project, "weight") else np.eye(FINAL)
            )
            weight = module.weights[tap if len(module.weights) > 1 else 0].detach().numpy()
            positions = [
                kernel @ field[:, y, x] for y in range(field.shape[1]) for x in range(field.shape[2])
            ]
            scores = np.array([score_of(name, position, query, weight) for position in positions])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            row += list(sum(share * position for share, position in zip(shares, positions, strict=True)))
            weights_of_taps.append(shares.reshape(field.shape[1:]))
        features.append(row)
        attention.append(weights_of_taps)
    return np.array(features), attention


@pytest.mark.parametrize("per_tap", [False, True])
@pytest.mark.parametrize(
    ("name", "score"), [("additive", additive_score), ("tanh", tanh_score), ("dot", dot_score)]
)
def test_attention_agrees_with_loops_over_positions(name, score, per_tap):
    module, given = fusion(score, per_tap), maps()
    assert len(module.weights) == (len(CHANNELS) if per_tap else 1)
    fused = module(given)
    features, attention = by_loops(module, given, name)
    assert fused.features.shape == (2, module.out_features) == (2, 3 * FINAL)
    np.testing.assert_allclose(fused.features.detach(), features, rtol=1e-4, atol=1e-5)
    for tap, shape in enumerate(SHAPES):
        assert fused.attention[tap].shape == (2, *shape)
        torch.testing.assert_close(fused.attention[tap].sum((1, 2)), torch.ones(2))
        for image in range(2):
            np.testing.assert_allclose(
                fused.attention[tap][image].detach(), attention[image][tap], rtol=1e-4, atol=1e-6
            )


def test_the_published_attention_ignores_its_query():
    module, given = fusion(additive_score), maps()
    other = FeatureMaps(given.taps, maps(seed=9).final * 10)
    torch.testing.assert_close(module(given).features, module(other).features)
    final = given.final.clone().requires_grad_()
    module(FeatureMaps(given.taps, final)).features.square().sum().backward()
    torch.testing.assert_close(final.grad, torch.zeros_like(final), atol=1e-5, rtol=0)


@pytest.mark.parametrize("score", [tanh_score, dot_score])
def test_in_the_other_attentions_the_query_matters(score):
    module, given = fusion(score), maps()
    other = FeatureMaps(given.taps, maps(seed=9).final)
    assert (module(given).features - module(other).features).abs().max() > 1e-2
    final = given.final.clone().requires_grad_()
    module(FeatureMaps(given.taps, final)).features.square().sum().backward()
    assert final.grad.abs().max() > 1e-3


@pytest.mark.parametrize("score", [additive_score, tanh_score, dot_score])
def test_attention_starts_as_the_mean_and_can_leave_it(score):
    torch.manual_seed(1)
    pooled, module = (
        PooledTaps(CHANNELS, FINAL),
        AttentionFusion(CHANNELS, FINAL, score=score, per_tap=False, jitter=0.0),
    )
    module.projections.load_state_dict(pooled.projections.state_dict())
    torch.testing.assert_close(module(maps()).features, pooled(maps()).features)
    module(maps()).features.square().sum().backward()
    assert module.weights.grad.abs().max() > 1e-4


@pytest.mark.parametrize("score", [tanh_score, additive_score])
def test_attention_learns_where_to_look(score):
    """One position in sixteen is marked and tells the class; the others are noise."""
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (256,))
    field = torch.randn(256, 8, 4, 4)
    place = torch.randint(0, 16, (256,))
    rows = torch.arange(256)
    field[:, 0] *= 0.3
    field[rows, 0, place // 4, place % 4] = 2.0  # the mark
    field[rows, 1, place // 4, place % 4] = labels * 4.0 - 2  # the class
    given = FeatureMaps([field], torch.zeros(256, 8, 1, 1))

    module, head = AttentionFusion([8], 8, score=score, per_tap=False, jitter=0.0), torch.nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(module(given).features), labels).backward()
        optimizer.step()
    found = module(given).attention[0].flatten(1).argmax(1)
    assert (found == place).float().mean() > 0.5, "chance is one in sixteen"


def test_the_baseline_is_the_pooled_final_map_and_multi_layer_means_are_means():
    given = maps()
    last = LastMap(CHANNELS, FINAL)
    np.testing.assert_allclose(last(given).features, given.final.numpy().mean((2, 3)), rtol=1e-5)
    assert last(given).attention == []
    assert last.out_features == FINAL
    pooled = PooledTaps(CHANNELS, FINAL)
    assert isinstance(pooled.projections[1], torch.nn.Identity), "a tap that has C channels is not projected"
    assert pooled.projections[0].bias is None
    kernel = pooled.projections[0].weight[:, :, 0, 0].detach().numpy()
    wanted = given.taps[0].numpy().mean((2, 3)) @ kernel.T
    np.testing.assert_allclose(pooled(given).features[:, :FINAL].detach(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make", [PooledTaps, lambda *a: AttentionFusion(*a, score=tanh_score, per_tap=False, jitter=0.0)]
)
def test_a_multi_layer_fusion_without_taps_is_refused(make):
    with pytest.raises(ValueError, match=r"backbone\.taps is empty.*fusion=last"):
        make([], FINAL)


def test_jitter_is_noise_of_its_deviation_on_the_scores_in_training_alone():
    plain, noisy = fusion(tanh_score), fusion(tanh_score, jitter=0.5)
    given = maps(batch=400)
    assert torch.equal(plain(given).features, noisy.eval()(given).features)
    calm, moved = plain(given), noisy.train()(given)
    noise = torch.cat([a - b for a, b in zip(moved.scores, calm.scores, strict=True)], dim=1)
    assert noise.std().item() == pytest.approx(0.5, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match="jitter=-1"):
        fusion(tanh_score, jitter=-1)


@pytest.mark.parametrize("make", [PooledTaps, LastMap, lambda *a: fusion(tanh_score), lambda *a: low_rank()])
def test_positions_pooled_by_their_scores_are_the_features(make):
    fused = make(CHANNELS, FINAL)(maps())
    torch.testing.assert_close(fused.pooled_by(fused.scores), fused.features)
    assert fused.channels == [FINAL] * len(fused.positions)
    elsewhere = [torch.randn_like(scores) for scores in fused.scores]
    assert (fused.pooled_by(elsewhere) - fused.features).abs().max() > 1e-2


def test_a_fusion_without_projections_pools_what_it_says():
    first, second = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    alike = [torch.zeros(2, 4), torch.zeros(2, 6)]
    means = torch.cat([first.mean(2), second.mean(2)], dim=1)
    fused = Fused(means, [], [first, second], alike)
    assert fused.channels == [3, 5]
    torch.testing.assert_close(fused.pooled_by(alike), means)


def pooling_projected_maps(module, given, score=None):
    """The definition: maps are projected, then scored, then pooled."""
    query, features = given.final.mean((2, 3)), []
    for number, (project, tap) in enumerate(zip(module.projections, given.taps, strict=True)):
        projected = project(tap).flatten(2)
        shares = torch.ones_like(projected[:, :1]) / projected.shape[2]
        if score is not None:
            weight = module.weights[number if len(module.weights) > 1 else 0]
            shares = score(projected, query.unsqueeze(2), weight).softmax(1).unsqueeze(1)
        features.append((shares * projected).sum(2))
    return torch.cat(features, dim=1)


@pytest.mark.parametrize("per_tap", [False, True])
@pytest.mark.parametrize("score", [None, additive_score, dot_score, tanh_score])
def test_pooling_before_projecting_has_the_values_and_gradients_of_projecting_first(score, per_tap):
    torch.manual_seed(1)
    module = PooledTaps(CHANNELS, FINAL) if score is None else fusion(score, per_tap)
    module, given = module.double(), maps()
    leaves = [map_.double().requires_grad_() for map_ in (*given.taps, given.final)]
    given = FeatureMaps(leaves[:-1], leaves[-1])
    inputs = [*leaves, *module.parameters()]
    probe = torch.randn(module.out_features, dtype=torch.float64)
    results = []
    for features in (module(given).features, pooling_projected_maps(module, given, score)):
        objective = (features @ probe).square().sum()
        gradients = torch.autograd.grad(objective, inputs, materialize_grads=True)
        results.append([features, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("score", [None, additive_score, dot_score])
def test_where_the_score_is_linear_no_map_is_projected(score):
    module, given = fusion(score) if score else PooledTaps(CHANNELS, FINAL), maps()
    shapes = []
    for project in module.projections:
        project.register_forward_hook(lambda one, inputs, output: shapes.append(output.shape))
    module(given)
    assert shapes == [(2, FINAL, 1, 1)] * len(CHANNELS)


@pytest.mark.parametrize("score", [additive_score, dot_score, tanh_score])
def test_parameters_have_the_names_and_shapes_that_files_hold(score):
    shapes = {name: tuple(value.shape) for name, value in fusion(score, per_tap=True).state_dict().items()}
    projected = {"projections.0.weight": (FINAL, 3, 1, 1), "projections.2.weight": (FINAL, 5, 1, 1)}
    assert shapes == {"weights": (3, FINAL), **projected}
    shapes = {name: tuple(value.shape) for name, value in PooledTaps(CHANNELS, FINAL).state_dict().items()}
    assert shapes == projected


def low_rank(per_tap=False):
    torch.manual_seed(1)
    made = LowRankAttention(CHANNELS, FINAL, rank=4, per_tap=per_tap, jitter=0.0)
    torch.nn.init.normal_(made.weights)
    return made


@pytest.mark.parametrize("per_tap", [False, True])
def test_low_rank_attention_agrees_with_loops_over_positions(per_tap):
    module, given = low_rank(per_tap), maps()
    fused = module(given)
    assert fused.features.shape == (2, module.out_features) == (2, 3 * FINAL)
    to_query = module.query.weight.detach().numpy()
    for image in range(2):
        query = to_query @ given.final[image].numpy().mean((1, 2))
        for tap in range(3):
            field = given.taps[tap][image].flatten(1).numpy().T
            kernel = module.keys[tap].weight[:, :, 0, 0].detach().numpy()
            weight = module.weights[tap if per_tap else 0].detach().numpy()
            scores = np.array([weight @ np.tanh(kernel @ position + query) for position in field])
            scores *= FINAL / 4  # channels of the final map, and the rank
            shares = np.exp(scores) / np.exp(scores).sum()
            project = module.projections[tap]
            values = (
                project.weight[:, :, 0, 0].detach().numpy() if hasattr(project, "weight") else np.eye(FINAL)
            )
            wanted = sum(share * (values @ position) for share, position in zip(shares, field, strict=True))
            found = fused.features[image, tap * FINAL : (tap + 1) * FINAL].detach()
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(fused.attention[tap][image].flatten().detach(), shares, rtol=1e-4)


def test_in_low_rank_attention_the_query_matters_and_its_rank_is_checked():
    module, given = low_rank(), maps()
    other = FeatureMaps(given.taps, maps(seed=9).final)
    assert (module(given).features - module(other).features).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"fusion\.rank=0"):
        LowRankAttention(CHANNELS, FINAL, rank=0, per_tap=False, jitter=0.0)


def test_a_step_of_adam_moves_low_rank_attention_as_far_whatever_the_rank():
    """Twice the same keys are one function, and so they stay: each entry of w is moved equally far."""
    one, twice = low_rank(), LowRankAttention(CHANNELS, FINAL, rank=8, per_tap=False, jitter=0.0)
    twice.projections = one.projections
    with torch.no_grad():
        for single, double in zip([*one.keys, one.query], [*twice.keys, twice.query], strict=True):
            double.weight.copy_(torch.cat([single.weight] * 2))
        one.weights.zero_()
    given, wanted = maps(), torch.randn(2, 3 * FINAL)
    for module in (one, twice):
        optimizer = torch.optim.Adam([module.weights], lr=0.1)
        ((module(given).features - wanted) ** 2).sum().backward()
        optimizer.step()
    assert one.weights.abs().min() > 0.09
    torch.testing.assert_close(twice(given).features, one(given).features)
    for single, double in zip(one(given).attention, twice(given).attention, strict=True):
        torch.testing.assert_close(double, single)
