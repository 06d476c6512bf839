"""Levers on optimiser and weights as a user switches them on: real training on tiny data."""

import logging

import pytest
import torch

from unseen.config.build import build
from unseen.config.command_line import UsageError, building, load_config
from unseen.config.export import export
from unseen.deploy.bundle import load
from unseen.nn.trainable import norms
from unseen.workflow.run import execute

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = [
    "sampler.classes_per_batch=4", "sampler.images_per_class=2", "embedding.size=6", "pictures=false",
    "evaluation.draws=1", "evaluation.resamples=0", "evaluation.probe_classes=0",
]  # fmt: skip


def made(tiny_run, folder, *overrides):
    return build(load_config([*tiny_run, *SMALL, *overrides], run_folder=str(folder)))


def state(run):
    return {name: value.clone() for name, value in run.learner.embedder.backbone.state_dict().items()}


def moved(run, before):
    after = run.learner.embedder.backbone.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def fitted(run, **arguments):
    run.trainer.fit(run.learner, datamodule=run.data, **arguments)
    return run


def test_norms_alone_learn_and_nothing_else_is_in_the_optimizer(tiny_run, tmp_path, caplog):
    run = made(tiny_run, tmp_path, "trainable=norms")
    before, names = state(run), norms(run.learner.embedder.backbone)
    with caplog.at_level(logging.INFO, "unseen"):
        fitted(run)
    backbone = run.learner.embedder.backbone
    sizes = {name: weight.numel() for name, weight in backbone.named_parameters()}
    learn = sum(sizes[name] for name in names)
    assert f"Of {sum(sizes.values()):,} parameters of the backbone {learn:,} learn." in caplog.text
    changed = moved(run, before) & set(sizes)
    # A block that timm starts at zero hands no gradient down in the first steps.
    assert "network.layer4.0.bn2.weight" in changed
    assert changed <= names
    held = {id(p) for group in run.trainer.optimizers[0].param_groups for p in group["params"]}
    weights = dict(backbone.named_parameters())
    assert {name for name, weight in weights.items() if id(weight) in held} == names


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["ablation=full"],
            "adversary.silent_epochs=1 and trainer.max_epochs=1: this run is over before it acts",
        ),
        (["optimizer.frozen_backbone_epochs=1"], "this run is over before the backbone learns."),
        (["loss=contrastive", "memory=cross_batch", "memory.warmup=99"], "the memory is never used."),
        (["loss=contrastive", "memory=cross_batch", "memory.warmup=0"], None),
    ],
)
def test_what_a_training_is_too_short_for_is_said(tiny_run, tmp_path, caplog, typed, said):
    fitted(made(tiny_run, tmp_path, *typed))
    messages = [one.getMessage() for one in caplog.records if one.name == "unseen.training.learner"]
    warnings = [one for one in messages if "this run is over" in one or "never used" in one]
    assert [said in one for one in warnings] == ([] if said is None else [True])


def test_of_the_last_layers_alone_weights_and_statistics_move(tiny_run, tmp_path):
    typed = ["trainable=last", "trainable.count=1", "optimizer.frozen_backbone_epochs=1"]
    run = made(tiny_run, tmp_path, *typed, "trainer.max_epochs=2")
    before = state(run)
    fitted(run)
    changed = moved(run, before)
    assert changed
    assert all(".layer4." in name for name in changed)


def test_of_a_backbone_that_rests_nothing_moves(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "trainable=none")
    before, head = state(run), run.learner.embedder.projection.weight.detach().clone()
    fitted(run)
    assert moved(run, before) == set()
    assert not torch.equal(head, run.learner.embedder.projection.weight)
    assert not any("backbone" in group["name"] for group in run.trainer.optimizers[0].param_groups)


def test_a_strong_pull_keeps_the_backbone_near_its_start_which_is_remembered(tiny_run, tmp_path):
    def distance(run, before):
        now = dict(run.learner.embedder.backbone.named_parameters())
        return sum((now[name] - before[name]).square().sum() for name in now).item()

    typed = ["optimizer.l2_sp=400", "trainer.max_epochs=2"]
    free = made(tiny_run, tmp_path / "free", "trainer.max_epochs=2")
    start = state(free)
    far = distance(fitted(free), start)
    whole = fitted(made(tiny_run, tmp_path / "whole", *typed))
    assert distance(whole, start) < far / 2
    pretrained = whole.learner.pretrained.state_dict()
    assert all(torch.equal(pretrained[name], value) for name, value in start.items())


def test_rates_of_layers_reach_the_optimizer(tiny_run, tmp_path):
    run = fitted(made(tiny_run, tmp_path, "optimizer.layer_decay=0.5"))
    rates = {group["name"]: group["initial_lr"] for group in run.trainer.optimizers[0].param_groups}
    rate = run.config["optimizer"]["learning_rates"]["backbone"]
    assert {name: value for name, value in rates.items() if name.startswith("backbone")} == {
        f"backbone_layer_{place}{end}": rate * 0.5 ** (5 - place)
        for place in range(1, 6)
        for end in ("", "_no_decay")
    }


def test_low_rank_additions_learn_alone_and_are_merged_into_what_is_measured_and_exported(tiny_run, tmp_path):
    pytest.importorskip("peft")
    run = made(tiny_run, tmp_path, "trainable=lora", "trainable.rank=4", "averaging=ema")
    untouched = {name.replace(".base_layer", ""): value for name, value in state(run).items()}
    execute(run)
    merged = run.learner.embedder.backbone.state_dict()
    assert not any("lora" in name for name in merged)
    changed = {name for name, value in merged.items() if not torch.equal(value, untouched[name])}
    assert changed
    assert all(".conv" in name or ".downsample." in name for name in changed), "batch norm rests"
    deployed = load(export(tmp_path)).embedder.backbone.state_dict()
    assert deployed.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(deployed[name], value)


def test_the_strength_of_additions_and_interpolation_do_not_go_together(tiny_run, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(UsageError, match=r"averaging\.trained=0\.5.*trainable\.alpha"), building():
        made(tiny_run, tmp_path, "trainable=lora", "trainable.rank=4", "averaging=wise_ft")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainable.count=40", r"count=40: this backbone has 5 layers"),
        ("optimizer.layer_decay=2", r"layer_decay=2: wanted a factor"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tiny_run, tmp_path, typed, words):
    with pytest.raises(UsageError, match=words), building():
        made(tiny_run, tmp_path, "trainable=last", typed)
