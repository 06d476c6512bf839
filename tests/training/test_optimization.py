"""Learning rates: each kind of parameter has its own, and the factor is a pure function of progress."""

import math
from functools import partial

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from unseen.nn.backbone import Backbone
from unseen.nn.trainable import layers
from unseen.training.optimization import Optimization, constant, cosine, pull_back, step, warmed_up

RATES = {"backbone": 1e-4, "head": 1e-3, "adversary": 2e-3, "proxies": 1e-2, "loss": 5e-4}


def optimization(**changes):
    settings = {
        "algorithm": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
        "learning_rates": RATES,
        "schedule": constant,
        "warmup": 0.0,
        "frozen_backbone_epochs": 0,
        "layer_decay": 1.0,
        "l2_sp": 0.0,
    }
    return Optimization(**(settings | changes))


def test_cosine_agrees_with_torch_scheduler():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.05)
    for done in range(40):
        assert cosine(done / 40, final=0.05) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        scheduler.step()


def test_step_falls_at_each_milestone():
    factors = [step(progress, milestones=[0.5, 0.75], factor=0.1) for progress in (0.0, 0.49, 0.5, 0.8)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01])


def test_warmup_rises_linearly_then_follows_the_schedule():
    factor = warmed_up(lambda progress: cosine(progress, final=0.0), 0.1)
    assert factor(0.05) == pytest.approx(0.5 * cosine(0.05, final=0.0))
    assert factor(0.6) == pytest.approx(cosine(0.6, final=0.0))


def test_each_kind_has_its_rate_and_norms_biases_and_proxies_are_not_decayed():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    proxies = nn.Linear(4, 9, bias=False)
    boundary = nn.Parameter(torch.ones(1))
    configured = optimization().configure(
        {
            "backbone": backbone.parameters(),
            "head": nn.Linear(4, 2).parameters(),
            "adversary": [],
            "proxies": [proxies.weight],
            "loss": [boundary],
        },
        10,
    )
    groups = {group["name"]: group for group in configured["optimizer"].param_groups}
    assert set(groups) == {
        "backbone",
        "backbone_no_decay",
        "head",
        "head_no_decay",
        "proxies_no_decay",
        "loss_no_decay",
    }
    assert {name: group["weight_decay"] for name, group in groups.items() if "no_decay" in name} == {
        "backbone_no_decay": 0.0,
        "head_no_decay": 0.0,
        "proxies_no_decay": 0.0,
        "loss_no_decay": 0.0,
    }
    assert groups["backbone"]["weight_decay"] == 0.1
    assert groups["proxies_no_decay"]["lr"] == RATES["proxies"]
    assert groups["proxies_no_decay"]["params"] == [proxies.weight]
    assert groups["loss_no_decay"]["lr"] == RATES["loss"]
    assert groups["loss_no_decay"]["params"] == [boundary]


def test_rates_fall_by_the_layer_towards_the_image():
    stem, block, neck = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
    layers = [list(part.parameters()) for part in (stem, block, neck)]
    learning = [weight for layer in layers for weight in layer if weight is not neck.bias]
    head = nn.Linear(2, 2, bias=False)
    configured = optimization(layer_decay=0.5).configure(
        {"backbone": learning, "head": [head.weight]}, 10, layers
    )
    rates = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in configured["optimizer"].param_groups
        for weight in group["params"]
    }
    rate = RATES["backbone"]
    assert rates == {
        id(stem.weight): (rate / 4, 0.1),
        id(stem.bias): (rate / 4, 0.0),
        id(block.weight): (rate / 2, 0.1),
        id(neck.weight): (rate, 0.1),
        id(head.weight): (RATES["head"], 0.1),
    }


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "mobilenetv2_035", "resnet10t"])
def test_rates_of_layers_are_those_of_timm(model):
    options = {"img_size": 32} if model.startswith("vit") else {}
    backbone = Backbone(
        model, image_size=32, taps="late", weights="none", mean=None, std=None, options=options, frozen=False
    )
    held = dict(backbone.named_parameters())
    configured = optimization(layer_decay=0.75).configure(
        {"backbone": held.values()}, 10, [[held[name] for name in names] for names in layers(backbone)]
    )
    ours = {
        id(weight): group["lr"] / RATES["backbone"]
        for group in configured["optimizer"].param_groups
        for weight in group["params"]
    }
    theirs = {
        id(weight): group["lr_scale"]
        for group in param_groups_layer_decay(backbone.network, layer_decay=0.75)
        for weight in group["params"]
    }
    assert ours == pytest.approx(theirs)
    assert len(set(theirs.values())) > 4
    if model.startswith("vit"):
        # Twelve blocks, the last with the final norm, after the embedding of patches.
        assert ours[id(held["network.patch_embed.proj.weight"])] == pytest.approx(0.75**12)
        assert ours[id(held["network.blocks.4.mlp.fc1.weight"])] == pytest.approx(0.75**7)
        assert ours[id(held["network.norm.weight"])] == 1


def quadratic(weights, target):
    return sum((3 * (weight - aim).square()).sum() for weight, aim in zip(weights, target, strict=True))


def steps_of(make, count, strength=0.0, penalty=0.0):
    """Weights after some steps towards a target, and where they started."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((3, 4), (4,))]
    starts = [weight.detach().clone() for weight in weights]
    target = [torch.randn(weight.shape, generator=generator).double() for weight in weights]
    optimizer = make([{"params": [weights[0]], "lr": 0.02}, {"params": [weights[1]], "lr": 0.05}])
    for _ in range(count):
        optimizer.zero_grad()
        loss = quadratic(weights, target)
        for weight, start in zip(weights, starts, strict=True):
            loss = loss + penalty / 2 * (weight - start).square().sum()
        loss.backward()
        if strength:
            pull_back(optimizer, zip(weights, starts, strict=True), strength)
        optimizer.step()
    return weights, starts, target


def test_with_plain_sgd_the_pull_back_is_the_gradient_of_the_penalty():
    ours, *_ = steps_of(torch.optim.SGD, 7, strength=0.8)
    theirs, *_ = steps_of(torch.optim.SGD, 7, penalty=0.8)
    neither, *_ = steps_of(torch.optim.SGD, 7)
    for pulled, penalised, free in zip(ours, theirs, neither, strict=True):
        torch.testing.assert_close(pulled, penalised)
        assert not torch.allclose(pulled, free, rtol=1e-2)


def test_with_adam_the_pull_back_is_the_weight_decay_of_adamw_on_the_way_from_the_start():
    ours, starts, target = steps_of(partial(torch.optim.AdamW, weight_decay=0.0), 7, strength=0.8)
    ways = [nn.Parameter(torch.zeros_like(start)) for start in starts]
    optimizer = torch.optim.AdamW(
        [{"params": [ways[0]], "lr": 0.02}, {"params": [ways[1]], "lr": 0.05}], weight_decay=0.8
    )
    for _ in range(7):
        optimizer.zero_grad()
        quadratic([start + way for start, way in zip(starts, ways, strict=True)], target).backward()
        optimizer.step()
    for pulled, start, way in zip(ours, starts, ways, strict=True):
        torch.testing.assert_close(pulled, start + way)


def test_what_is_pulled_back_has_no_weight_decay_beside_it():
    network = nn.Linear(3, 4)
    kinds = {"backbone": network.parameters(), "head": nn.Linear(4, 2).parameters()}
    groups = optimization(l2_sp=1.0).configure(kinds, 10)["optimizer"].param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "backbone": 0.0, "backbone_no_decay": 0.0, "head": 0.1, "head_no_decay": 0.0
    }  # fmt: skip


def test_the_schedule_ends_with_the_run():
    configured = optimization(schedule=lambda progress: cosine(progress, final=0.0)).configure(
        {"head": nn.Linear(2, 2).parameters()}, total_steps=8
    )
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    wanted = [RATES["head"] * (1 + math.cos(math.pi * (done + 1) / 8)) / 2 for done in range(8)]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rates": RATES | {"head": -1.0}}, r"learning_rates\.head=-1"),
        ({"learning_rates": {"head": 1.0}}, "backbone"),
        ({"frozen_backbone_epochs": -1}, "frozen_backbone_epochs=-1"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"layer_decay": 0.0}, "layer_decay=0"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"l2_sp": -1.0}, "l2_sp=-1"),
    ],
)
def test_impossible_values_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        optimization(**changes)
