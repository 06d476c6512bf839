"""Losses side by side, and losses that are not ours."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn.functional import normalize

from unseen.losses import CrossBatchMemory, MetricLoss, WeightedSum, as_metric_loss, parameters_by_kind


class Spread(nn.Module):
    """A loss of somebody else: squared distance from the own row of a table, and a learned temperature."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(6, 16))
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, embeddings, labels):
        return self.temperature * (embeddings - self.rows[labels]).square().sum(1).mean()


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(24, 16, generator=generator)).to(dtype).requires_grad_()
    return embeddings, torch.arange(24) // 4, torch.arange(24)


def test_value_and_gradient_are_the_weighted_sums_of_those_of_the_parts(build_loss):
    pairs, proxies = build_loss("multi_similarity"), build_loss("proxy_anchor")
    embeddings, labels, ids = batch()
    values = [part(embeddings, labels, ids) for part in (pairs, proxies)]
    gradients = [torch.autograd.grad(value, embeddings)[0] for value in values]

    both = WeightedSum({"pairs": (1.5, pairs), "proxies": (0.25, proxies)})
    assert both.last == {}
    total = both(embeddings, labels, ids)
    total.backward()
    torch.testing.assert_close(total, 1.5 * values[0] + 0.25 * values[1])
    torch.testing.assert_close(embeddings.grad, 1.5 * gradients[0] + 0.25 * gradients[1])
    assert both.last == {"pairs": values[0], "proxies": values[1]}
    assert not any(value.requires_grad for value in both.last.values())


def test_the_combined_choice_is_the_sum_of_its_parts(build_loss):
    parts = [build_loss("contrastive", "memory=cross_batch"), build_loss("norm_softmax")]
    overrides = ["loss@loss.parts.pairs=contrastive", "loss@loss.parts.proxies=norm_softmax"]
    both = build_loss("combined", *overrides, "memory=cross_batch", "loss.weights.pairs=0.5")
    parts[1].load_state_dict(both.parts["proxies"].state_dict())
    values = [part(*batch()) for part in parts]
    torch.testing.assert_close(both(*batch()), 0.5 * values[0] + values[1])
    assert both.parts["pairs"].memory is not None
    assert both.parts["proxies"].memory is None


def test_a_miner_follows_the_margin_of_the_combined_loss_of_pairs(build_loss):
    overrides = ["loss@loss.parts.pairs=triplet", "loss.parts.pairs.function.margin=0.37"]
    pairs = build_loss("combined", *overrides).parts["pairs"]
    assert pairs.miner.margin == pairs.function.margin == 0.37


def test_parts_and_weights_of_different_names_are_refused(build_loss):
    with pytest.raises(ValueError, match=r"weights are given for \['other', 'pairs', 'proxies'\]"):
        build_loss("combined", "+loss.weights.other=1.0")


def test_parameters_of_the_parts_keep_their_kind(build_loss):
    margin, proxies, own = build_loss("margin"), build_loss("arcface"), Spread()
    both = WeightedSum({"margin": (1, margin), "arcface": (1, proxies), "own": (1, own)})
    kinds = parameters_by_kind(both)
    assert {id(p) for p in kinds["proxies"]} == {id(own.rows), *map(id, proxies.parameters())}
    assert {id(p) for p in kinds["loss"]} == {id(own.temperature), *map(id, margin.parameters())}


def test_memories_and_proxies_of_the_parts_are_saved_and_restored(build_loss):
    def made():
        with_memory = build_loss("contrastive", "memory=cross_batch", "memory.warmup=1")
        return WeightedSum({"memory": (1.0, with_memory), "proxies": (1.0, build_loss("proxy_nca"))})

    first, second = made(), made()
    first(*batch())
    with torch.no_grad():
        first.parts["proxies"].function.proxies.normal_()
    second.load_state_dict(first.state_dict())
    assert second(*batch()).item() == first(*batch()).item()
    assert len(second.parts["memory"].memory) == 48


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "parts is empty"),
        ({"a": (0.0, Spread())}, r"parts\['a'\] has weight 0"),
        ({"a": (float("nan"), Spread())}, "weight nan"),
        ({"a.b": (1.0, Spread())}, "'a.b'"),
    ],
)
def test_impossible_sums_are_refused_by_name(parts, words):
    with pytest.raises(ValueError, match=words):
        WeightedSum(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_of_embeddings_and_labels_is_a_loss(dtype):
    embeddings, labels, ids = batch(dtype)
    own = Spread()
    got = as_metric_loss(own)(embeddings, labels, ids)
    got.backward()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(own(embeddings.float(), labels).item())
    assert torch.isfinite(embeddings.grad).all()
    assert own.rows.grad is not None


@pytest.mark.parametrize(
    "function",
    [
        losses.NTXentLoss(),
        losses.FastAPLoss(),
        losses.IntraPairVarianceLoss(),
        losses.SubCenterArcFaceLoss(num_classes=6, embedding_size=16),
    ],
    ids=lambda function: type(function).__name__,
)
def test_a_loss_of_pytorch_metric_learning_is_a_loss(function):
    embeddings, labels, ids = batch()
    assert as_metric_loss(function)(embeddings, labels, ids).item() == pytest.approx(
        function(embeddings, labels).item()
    )


def test_what_already_has_the_contract_is_left_alone(build_loss):
    loss = build_loss("triplet")
    assert as_metric_loss(loss) is loss
    both = WeightedSum({"triplet": (1.0, loss)})
    assert as_metric_loss(both) is both


def test_a_miner_or_a_memory_for_what_cannot_use_it_is_refused_in_words():
    with pytest.raises(ValueError, match=r"miner is BatchHardMiner, but Spread .*Choices: miner=none"):
        MetricLoss(Spread(), miners.BatchHardMiner())
    memory = CrossBatchMemory(size=8, embedding_size=16, warmup=0)
    with pytest.raises(ValueError, match=r"memory is CrossBatchMemory, but Spread .*Choices: memory=none"):
        MetricLoss(Spread(), memory=memory)


def test_a_value_for_each_image_is_refused_in_words():
    class Each(nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.sum(1)

    with pytest.raises(ValueError, match=r"Each gave a tensor of shape \(24,\), wanted a scalar"):
        as_metric_loss(Each())(*batch())


class Constant(nn.Module):
    """A loss whose value is known, and its own multiple of the embeddings' sum."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, embeddings, labels):
        return self.value + 0 * embeddings.sum()


def learned(values, within=10.0, weight=1.0):
    parts = {f"loss{index}": (weight, Constant(value)) for index, value in enumerate(values)}
    return WeightedSum(parts, learned_within=within)


def test_learned_weights_start_where_they_were_given_and_have_the_gradient_of_kendall(build_loss):
    parts = {"pairs": (0.5, build_loss("triplet")), "proxies": (2.0, build_loss("proxy_anchor"))}
    given, both = WeightedSum(parts), WeightedSum(parts, learned_within=10.0)
    embeddings, labels, ids = batch()
    total = both(embeddings, labels, ids)
    torch.testing.assert_close(total, given(embeddings, labels, ids))
    assert both.weights == pytest.approx(given.weights)

    with torch.no_grad():
        both.thetas.copy_(torch.tensor([0.3, -0.8]))
    # Kendall et al. 2018, eq. 7, doubled, in σ² = 1 / w: L / σ² + log σ²; by autograd from their own form.
    thetas = both.thetas.detach().double().requires_grad_()
    weights = torch.tensor([0.5, 2.0]).double() * 10.0 ** torch.tanh(thetas)
    variances = 1 / weights
    values = torch.stack([part(embeddings, labels, ids).detach() for part in both.parts.values()]).double()
    objective = (values / variances + variances.log()).sum()
    [wanted] = torch.autograd.grad(objective, thetas)
    total = both(embeddings, labels, ids)
    [found, at_embeddings] = torch.autograd.grad(total, [both.thetas, embeddings])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.double(), (weights * values).sum().detach(), rtol=1e-4, atol=1e-5)
    fixed = WeightedSum({name: (weight, parts[name][1]) for name, weight in both.weights.items()})
    [alone] = torch.autograd.grad(fixed(embeddings, labels, ids), embeddings)
    torch.testing.assert_close(at_embeddings, alone)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.5, 4.0], [2.0, 0.25]),  # each counts the same: w = 1 / L
        ([0.0, 1.0], [10.0, 1.0]),  # a miner that finds nothing does not take all weight
        ([-3.0, 1.0], [10.0, 1.0]),  # nor does a loss below zero
        ([1e-6, 1e6], [10.0, 0.1]),  # and none is left out
    ],
)
def test_learned_weights_even_losses_out_and_none_takes_all(values, wanted):
    loss = learned(values)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss(*batch()).backward()
        optimizer.step()
    assert list(loss.weights.values()) == pytest.approx(wanted, rel=0.05)


def test_learned_weights_are_saved_and_learn_at_the_rate_of_the_loss():
    loss, other = learned([1.0, 2.0]), learned([1.0, 2.0])
    with torch.no_grad():
        loss.thetas.copy_(torch.tensor([1.0, -1.0]))
    other.load_state_dict(loss.state_dict())
    assert other.weights == loss.weights
    assert parameters_by_kind(loss) == {"proxies": [], "loss": [loss.thetas]}


def test_weights_that_are_given_add_no_parameter_and_no_state(build_loss):
    both = build_loss("combined")
    assert not [name for name in both.state_dict() if "theta" in name]
    assert build_loss("combined", "loss.learned_within=5.0").learned_within == 5.0


@pytest.mark.parametrize("within", [1.0, 0.5, float("inf"), float("nan")])
def test_a_factor_that_is_not_above_one_is_refused(within):
    with pytest.raises(ValueError, match="learned_within="):
        learned([1.0], within=within)


def test_a_third_loss_and_a_miner_of_its_own_can_be_typed(build_loss):
    typed = ["+loss@loss.parts.third=triplet", "+loss.weights.third=0.5", "loss.learned_within=10"]
    miners = ["+miner@loss.miners.third=hard", "+miner@loss.miners.pairs=multi_similarity"]
    three = build_loss("combined", *typed, *miners)
    assert list(three.parts) == ["pairs", "proxies", "third"]
    assert type(three.parts["third"].miner).__name__ == "BatchHardMiner"
    assert type(three.parts["pairs"].miner).__name__ == "MultiSimilarityMiner"
    assert three(*batch()).isfinite()
    with pytest.raises(ValueError, match=r"miners are given for \['forth'\]"):
        build_loss("combined", "+loss.miners.forth=null")
