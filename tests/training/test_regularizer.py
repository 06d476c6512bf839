"""Regularisers in real training: beside any loss, resumed exactly, on several processes."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.nn.adversaries import CLASSES, IMAGES, embedder, labels, metric
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.nn.regularizer import Distillation, EmbeddingMixup, RegularizerInput, SelfDistillation, distances

FORMS = {
    "distillation": [],
    "self_distillation": ["regularizer.sizes=[24]"],
    "mixup": [],
}


def made(tiny_run, folder, form, *overrides):
    typed = [f"regularizer={form}", *FORMS.get(form, []), "pictures=false", "sampler.classes_per_batch=4"]
    return build(load_config([*tiny_run, *typed, *overrides], run_folder=folder))


def fitted(run, **arguments):
    run.trainer.fit(run.learner, datamodule=run.data, **arguments)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_beside_pairs_and_proxies_together(tiny_run, tmp_path, form):
    typed = ["loss=combined", "loss.learned_within=10", "trainer.precision=bf16-mixed", "memory=cross_batch"]
    run = made(tiny_run, tmp_path, form, *typed, "memory.warmup=1", "memory.size=16")
    learner = run.learner
    frozen = copy.deepcopy(getattr(learner.regularizer, "teachers", nn.ModuleList())).state_dict()
    own = [parameter.detach().clone() for parameter in learner.regularizer.new_layers()]
    proxies = [parameter.detach().clone() for parameter in learner.regularizer.losses.parameters()]
    logged = fitted(run).trainer.callback_metrics
    assert logged["train/regularizer_loss"].isfinite()
    assert logged["train/gradient_norm_regularizer"] > 0
    assert logged["train/loss"].item() == pytest.approx(
        (logged["train/metric_loss"] + logged["train/regularizer_loss"]).item(), rel=1e-3
    )
    weights = [logged[f"train/metric_loss_weight_{name}"].item() for name in ("pairs", "proxies")]
    assert weights != [1.0, 1.0]
    groups = run.trainer.optimizers[0].param_groups
    kind = {id(one): group["name"] for group in groups for one in group["params"]}
    assert all(kind[id(one)].startswith("head") for one in learner.regularizer.new_layers())
    assert {kind[id(one)].split("_")[0] for one in learner.regularizer.losses.parameters()} <= {
        "proxies",
        "loss",
    }
    pairs = zip(own, learner.regularizer.new_layers(), strict=True)
    assert all(not torch.equal(before, after) for before, after in pairs)
    pairs = zip(proxies, learner.regularizer.losses.parameters(), strict=True)
    assert all(not torch.equal(before, after) for before, after in pairs)
    teachers = learner.regularizer.state_dict()
    assert all(torch.equal(teachers[f"teachers.{name}"], value) for name, value in frozen.items())
    assert not [
        one for one in kind if one in {id(p) for p in learner.regularizer.parameters() if not p.requires_grad}
    ]
    # The batch's own embeddings are remembered; mixtures, whose ids are lower, are not.
    assert learner.loss.parts["pairs"].memory.ids.min() >= -1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_a_run_resumed_in_mid_epoch_ends_with_the_weights_of_an_uninterrupted_one(tiny_run, tmp_path, form):
    typed = ["trainer.max_epochs=2", "sampler.images_per_class=2", "loss=combined", "loss.learned_within=10"]
    whole = made(tiny_run, tmp_path / "whole", form, *typed)
    steps = len(whole.data.train_dataloader())
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps + 2, save_top_k=-1)
    whole.trainer.callbacks.append(every)
    fitted(whole)
    again = made(tiny_run, tmp_path / "resumed", form, *typed)
    with torch.no_grad():
        for parameter in again.learner.regularizer.parameters():
            parameter.add_(1.0)  # what was saved counts, the teacher included
    fitted(again, ckpt_path=tmp_path / f"step={steps + 2}.ckpt")
    assert again.trainer.global_step == whole.trainer.global_step
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in again.learner.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_introspection_of_pairs_has_a_memory_and_a_boundary_of_its_own_and_resumes(tiny_run, tmp_path):
    typed = ["trainer.max_epochs=2", "sampler.images_per_class=2", "loss=margin", "memory=cross_batch"]
    typed += ["memory.warmup=1", "memory.size=16", "lever=introspection"]
    whole = made(tiny_run, tmp_path / "whole", "introspection", *typed)
    steps = len(whole.data.train_dataloader())
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps + 2, save_top_k=-1)
    whole.trainer.callbacks.append(every)
    fitted(whole)
    [own] = whole.learner.regularizer.losses
    assert own.memory.embeddings.shape == (16, 2 * whole.learner.embedder.projection.out_features)
    assert own.function.beta.item() != whole.learner.loss.function.beta.item() == pytest.approx(1.2)
    again = made(tiny_run, tmp_path / "resumed", "introspection", *typed)
    fitted(again, ckpt_path=tmp_path / f"step={steps + 2}.ckpt")
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in again.learner.state_dict().items())


@pytest.mark.slow
def test_without_one_nothing_is_built_or_saved_and_the_network_starts_the_same(tiny_run, tmp_path):
    none = made(tiny_run, tmp_path / "none", "none")
    assert none.learner.regularizer is None
    assert not [name for name in none.learner.state_dict() if "regularizer" in name]
    other = made(tiny_run, tmp_path / "other", "self_distillation")
    start = other.learner.state_dict()
    assert all(torch.equal(start[name], value) for name, value in none.learner.state_dict().items())


class Proxies(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(CLASSES, size))

    def forward(self, embeddings, target, ids):
        return (embeddings - self.rows[target]).square().sum(1).mean()


class Step(nn.Module):
    """A training step as a module, so that torch can wrap it."""

    def __init__(self, model, regularizer):
        super().__init__()
        self.model, self.regularizer = model, regularizer

    def forward(self, images):
        embedded, target, ids = self.model(images), labels(), torch.arange(IMAGES)

        def loss(embeddings, target, ids):
            return metric(embeddings, target)

        of_batch = loss(embedded.embedding, target, ids)
        seen = RegularizerInput(images, embedded, self.model, target, ids, of_batch, loss)
        return of_batch + self.regularizer(seen)


def gradients(rank, world):
    found = []
    for name in FORMS:
        model = embedder()
        made = {
            "distillation": lambda model: Distillation(
                model, Proxies, strength=1.0, relation=distances, into="embedding", own=True, others={}
            ),
            "self_distillation": lambda model: SelfDistillation(
                model, Proxies, sizes=[8], strength=1.0, temperature=1.0
            ),
            "mixup": lambda model: EmbeddingMixup(model, Proxies, strength=0.5, concentration=2.0),
        }[name](model)
        with torch.no_grad():
            model.backbone.maps[2].add_(torch.randn_like(model.backbone.maps[2]))
        step = DistributedDataParallel(Step(model, made)) if world > 1 else Step(model, made)
        torch.manual_seed(rank)
        step(torch.zeros(IMAGES, 3, 1, 1)).backward()
        found.append([one.grad for one in step.parameters() if one.requires_grad])
    return found


def test_processes_share_their_gradients_and_teachers_have_none(on_ranks):
    first, second = on_ranks(2, gradients)
    for one, other in zip(first, second, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs)
    # Where nothing is drawn at random, the mean over processes is what each has alone.
    alone = gradients(0, 1)
    for form in (0, 1):
        for mine, theirs in zip(first[form], alone[form], strict=True):
            torch.testing.assert_close(mine, theirs)
