"""Learning rates: each kind of parameter has its own, and the factor is a pure function of progress."""

import math

import pytest
import torch
from torch import nn

from unseen.training.optimization import Optimization, constant, cosine, step, warmed_up

RATES = {"backbone": 1e-4, "head": 1e-3, "adversary": 2e-3, "proxies": 1e-2, "loss": 5e-4}


def optimization(**changes):
    settings = {
        "algorithm": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
        "learning_rates": RATES,
        "schedule": constant,
        "warmup": 0.0,
        "frozen_backbone_epochs": 0,
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
    ],
)
def test_impossible_values_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        optimization(**changes)
