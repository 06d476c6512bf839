"""Every choice of the loss, miner and memory groups, as the command line composes it."""

from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch.nn.functional import normalize

GROUPS = Path(__file__).parents[2] / "conf"


def choices_of(group):
    return sorted(path.stem for path in GROUPS.joinpath(group).glob("[!_]*.yaml"))


LOSSES = choices_of("loss")
PROXY_LOSSES = [name for name in LOSSES if "_proxies" in GROUPS.joinpath("loss", f"{name}.yaml").read_text()]
PAIR_LOSSES = [name for name in LOSSES if name not in PROXY_LOSSES]


def noisy_classes():
    """24 points of 6 classes in 32 dimensions, a linear problem: inputs, labels, ids."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(24) // 4
    centers = torch.randn(6, 32, generator=generator)
    return centers[labels] + 1.5 * torch.randn(24, 32, generator=generator), labels, torch.arange(24)


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss_with_finite_gradients(name, build_loss):
    inputs, labels, ids = noisy_classes()
    loss = build_loss(name, embedding_size=8)
    network = torch.nn.Linear(32, 8, bias=False)
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=3e-3)
    values = []
    for _ in range(12):
        value = loss(normalize(network(inputs)), labels, ids)
        optimizer.zero_grad()
        value.backward()
        assert torch.isfinite(network.weight.grad).all()
        assert network.weight.grad.abs().sum() > 0
        optimizer.step()
        values.append(value.item())
    # Mined triplets change from step to step, hence the mean of a few.
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_sampler_follows_the_loss_unless_it_was_chosen(name, compose_loss):
    expected = "shuffled" if name in PROXY_LOSSES else "class_balanced"
    assert compose_loss(f"loss={name}").sampler.name == expected
    for sampler in ("class_balanced", "shuffled"):
        assert compose_loss(f"loss={name}", f"sampler={sampler}").sampler.name == sampler


def test_miner_follows_the_loss_unless_it_was_chosen(compose_loss):
    assert compose_loss("loss=triplet").miner.type_of_triplets == "semihard"
    assert compose_loss("loss=triplet", "miner=none").miner is None
    assert compose_loss("loss=margin", "miner.cutoff=0.7").loss.miner.cutoff == 0.7


@pytest.mark.parametrize("miner", ["semi_hard", "violating"])
def test_one_margin_drives_the_triplet_loss_and_its_miner(miner, compose_loss):
    for margin in (0.2, 0.37):
        config = compose_loss("loss=triplet", f"miner={miner}", f"loss.function.margin={margin}")
        built = instantiate(config.loss)(num_classes=6, embedding_size=16)
        assert (built.function.margin, built.miner.margin) == (margin, margin)


def test_a_miner_keeps_its_own_margin_beside_a_loss_without_one(compose_loss):
    config = compose_loss("loss=multi_similarity", "miner=semi_hard")
    assert instantiate(config.loss)(num_classes=6, embedding_size=16).miner.margin == 0.2


def test_normalization_follows_the_loss_unless_it_was_chosen(compose_loss):
    for name in LOSSES:
        assert compose_loss(f"loss={name}").embedding.normalize == (name != "n_pair")
    assert compose_loss("loss=n_pair", "embedding.normalize=true").embedding.normalize
    assert compose_loss("loss=n_pair", "embedding=default").embedding.normalize


def test_the_layer_norm_follows_the_loss_unless_it_was_chosen(compose_loss):
    for name in LOSSES:
        assert compose_loss(f"loss={name}").embedding.layer_norm == (name == "norm_softmax")
    assert not compose_loss("loss=norm_softmax", "embedding.layer_norm=false").embedding.layer_norm
    assert not compose_loss("loss=norm_softmax", "embedding=default").embedding.layer_norm
    assert compose_loss("loss=norm_softmax").embedding.normalize


@pytest.mark.slow
@pytest.mark.parametrize("miner", choices_of("miner"))
def test_every_miner_goes_with_pairs_and_triplets(miner, build_loss):
    inputs, labels, ids = noisy_classes()
    for name in ("triplet", "multi_similarity", "contrastive"):
        for memory in (["memory=none"], ["memory=cross_batch", "memory.warmup=0"]):
            loss = build_loss(name, f"miner={miner}", *memory, embedding_size=32)
            value = loss(inputs.requires_grad_(), labels, ids)
            value.backward()
            assert torch.isfinite(value)


@pytest.mark.parametrize("name", PROXY_LOSSES)
@pytest.mark.parametrize("override", ["miner=hard", "memory=cross_batch"])
def test_proxies_refuse_a_miner_and_a_memory(name, override, build_loss):
    key = override.split("=")[0]
    with pytest.raises(ValueError, match=rf"{key} is (BatchHardMiner|CrossBatchMemory).*Choices: {key}=none"):
        build_loss(name, override)


def test_a_loss_within_its_batch_refuses_a_memory(build_loss):
    with pytest.raises(ValueError, match=r"CrossBatchMemory, but NPairsLoss .*Choices: memory=none"):
        build_loss("n_pair", "memory=cross_batch")


def test_a_memory_of_nothing_is_refused(build_loss):
    with pytest.raises(ValueError, match="size=0"):
        build_loss("contrastive", "memory=cross_batch", "memory.size=0")


@pytest.mark.parametrize("name", ["triplet", "arcface"])
def test_one_class_is_refused(name, build_loss):
    with pytest.raises(ValueError, match="1 training class"):
        build_loss(name, num_classes=1)


def test_a_misspelt_value_names_its_key(compose_loss):
    with pytest.raises(InstantiationException, match=r"loss\.function"):
        instantiate(compose_loss("loss=contrastive", "+loss.function.marginn=1").loss)
