"""Real training on tiny data: what must move moves, what is frozen rests, and λ follows progress."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.data.batch import Batch
from unseen.evaluation.embed import embed, fused_features
from unseen.evaluation.measure import measure
from unseen.losses import WeightedSum
from unseen.tracking.record import RunRecord
from unseen.workflow.run import execute

pytestmark = pytest.mark.slow


def made(tiny_run, folder, *overrides):
    return build(load_config([*tiny_run, "pictures=false", *overrides], run_folder=folder))


def fitted(run, **arguments):
    run.trainer.fit(run.learner, datamodule=run.data, **arguments)
    return run


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("loss", ["norm_softmax", "proxy_anchor", "soft_triple"])
def test_proxies_move_at_their_own_rate_and_are_saved_and_restored(tiny_run, tmp_path, loss):
    overrides = [f"loss={loss}", "sampler.batch_size=8", "optimizer.learning_rates.proxies=0.05"]
    run = made(tiny_run, tmp_path, *overrides)
    before = parameters(run.learner.loss)
    assert before, "the proxies must be parameters of the loss"
    fitted(run)
    after = parameters(run.learner.loss)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    [group] = [g for g in run.trainer.optimizers[0].param_groups if g["name"].startswith("proxies")]
    assert {id(p) for p in group["params"]} == {id(p) for p in run.learner.loss.parameters()}
    assert group["initial_lr"] == 0.05

    run.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    restored = made(tiny_run, tmp_path, *overrides)
    restored.learner.load_state_dict(torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(after[name], value) for name, value in parameters(restored.learner.loss).items())


def test_the_boundary_of_the_margin_loss_moves_at_the_rate_of_the_loss(tiny_run, tmp_path):
    run = fitted(made(tiny_run, tmp_path, "loss=margin", "sampler.classes_per_batch=4"))
    groups = {group["name"]: group for group in run.trainer.optimizers[0].param_groups}
    [boundary] = run.learner.loss.parameters()
    assert groups["loss_no_decay"]["params"] == [boundary]
    assert groups["loss_no_decay"]["initial_lr"] == 5e-4
    # Adam moves a number by at most about its rate a step.
    assert 0 < abs(boundary.item() - 1.2) <= 1.5 * 5e-4 * run.trainer.global_step


def test_each_part_of_a_weighted_sum_is_logged(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")
    run.learner.loss = WeightedSum({"mined": (1.0, run.learner.loss), "all": (0.5, ContrastiveLoss())})
    logged = fitted(run).trainer.callback_metrics
    total = logged["train/metric_loss_mined"] + 0.5 * logged["train/metric_loss_all"]
    assert logged["train/metric_loss_all"] > 0
    assert logged["train/metric_loss"].item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize(("margin", "share"), [(5.0, 0.0), (-5.0, 1.0)])
def test_the_share_of_batches_that_hold_no_triplet_to_learn_from_is_logged(tiny_run, tmp_path, margin, share):
    typed = ["loss=triplet", "miner=none", f"loss.function.margin={margin}", "sampler.classes_per_batch=4"]
    run = fitted(made(tiny_run, tmp_path, *typed))
    assert run.trainer.callback_metrics["train/batches_without_pairs"].item() == share


def test_during_the_warm_up_the_backbone_rests_and_the_head_learns(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "optimizer.frozen_backbone_epochs=1", "sampler.classes_per_batch=4")
    backbone = {name: value.clone() for name, value in run.learner.embedder.backbone.state_dict().items()}
    head = parameters(run.learner.embedder.projection)
    fitted(run)
    now = run.learner.embedder.backbone.state_dict()
    assert all(torch.equal(backbone[name], now[name]) for name in backbone), (
        "weights and batch norm statistics"
    )
    assert not torch.equal(head["weight"], run.learner.embedder.projection.weight)


def test_after_the_warm_up_the_backbone_learns(tiny_run, tmp_path):
    run = made(
        tiny_run,
        tmp_path,
        "optimizer.frozen_backbone_epochs=1",
        "trainer.max_epochs=2",
        "sampler.classes_per_batch=4",
    )
    before = parameters(run.learner.embedder.backbone)
    fitted(run)
    after = parameters(run.learner.embedder.backbone)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_strength_of_the_adversary_follows_the_share_of_steps_done(tiny_run, tmp_path):
    schedule = "adversary.strength._target_=unseen.nn.adversary.dann"
    run = made(
        tiny_run, tmp_path, "ablation=full", "trainer.max_epochs=3", "sampler.classes_per_batch=2", schedule
    )
    seen = []
    strength_at = run.learner.adversary.strength_at

    def watched(progress, epoch):
        seen.append((progress, strength_at(progress, epoch)))
        return seen[-1][1]

    run.learner.adversary.strength_at = watched
    fitted(run)
    steps = run.trainer.global_step
    assert len(seen) == steps
    maximum = run.config["adversary"]["strength"]["maximum"]
    for step, (progress, strength) in enumerate(seen):
        assert progress == pytest.approx(step / steps)
        silent = step < steps / 3
        formula = maximum * (2 / (1 + math.exp(-10 * step / steps)) - 1)
        assert strength == (0 if silent else pytest.approx(formula))


CLIPPED = ["loss=norm_softmax", "sampler.batch_size=8", "trainer.gradient_clip_val=0.01"]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_silent_adversary_changes_nothing_of_what_is_deployed(tiny_run, tmp_path, algorithm):
    clipping = [
        *CLIPPED,
        f"+trainer.gradient_clip_algorithm={algorithm}",
    ]
    silent = ["ablation=custom", "adversary=grl", "adversary.silent_epochs=9"]
    without, beside = (
        fitted(made(tiny_run, tmp_path / str(len(more)), *clipping, *more)).learner for more in ([], silent)
    )
    assert beside.adversary is not None
    for one, other in zip(without.embedder.parameters(), beside.embedder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_adversarys_head_is_clipped_too(tiny_run, tmp_path):
    class Norms(Callback):
        def on_train_batch_end(self, trainer, learner, *_):
            seen.append([nn.utils.get_total_norm(g for p in part.parameters() if (g := p.grad) is not None)
                         for part in (learner.adversary, learner.embedder)])  # fmt: skip

    seen = []
    run = made(tiny_run, tmp_path, *CLIPPED, "ablation=full")
    run.trainer.callbacks.append(Norms())
    fitted(run)
    assert len(seen) > 1
    assert all(0 < norm <= 0.0101 for norms in seen for norm in norms)


FORMS = ["grl", "grl_repaired", "attention", "masking", "taps", "erasure", "energy", "posterior", "virtual"]


@pytest.mark.parametrize(
    ("loss", "precision"), [("multi_similarity", "32-true"), ("norm_softmax", "bf16-mixed")]
)
@pytest.mark.parametrize("adversary", FORMS)
def test_every_form_trains_with_pairs_and_with_proxies(tiny_run, tmp_path, adversary, loss, precision):
    overrides = [f"loss={loss}", "ablation=custom", f"adversary={adversary}", "adversary.silent_epochs=0"]
    overrides.append(f"trainer.precision={precision}")
    overrides.append("sampler.classes_per_batch=4" if loss == "multi_similarity" else "sampler.batch_size=8")
    run = made(tiny_run, tmp_path, *overrides)
    head = parameters(run.learner.adversary.head)
    logged = fitted(run).trainer.callback_metrics
    assert logged["train/gradient_norm_adversary"] >= 0
    assert logged["train/adversary_strength"] == run.config["adversary"]["strength"]["maximum"]
    assert all(torch.isfinite(value).all() for value in run.learner.state_dict().values())
    after = parameters(run.learner.adversary.head)
    assert any(not torch.equal(head[name], after[name]) for name in head)


def test_the_embedding_pass_keeps_order_mode_and_full_precision(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "trainer.precision=bf16-mixed", "sampler.classes_per_batch=4")
    run.learner.train()
    rows = run.data.split.query[::-1].copy()
    images = embed(run.learner.embedder, run.data.loader(rows), features=fused_features)
    assert run.learner.training
    assert images.ids.tolist() == rows.tolist()
    assert images.labels.tolist() == run.data.manifest.labels[rows].tolist()
    assert images.embeddings.dtype == torch.float32
    torch.testing.assert_close(images.embeddings.norm(dim=1), torch.ones(len(rows)))
    alone = embed(run.learner.embedder, run.data.loader(rows[:1]))
    torch.testing.assert_close(alone.embeddings[0], images.embeddings[0], rtol=1e-4, atol=1e-5)
    assert alone.features.shape == (1, 0)


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_in_mid_epoch_ends_with_the_weights_of_an_uninterrupted_one(tiny_run, tmp_path):
    overrides = ["trainer.max_epochs=2", "sampler.classes_per_batch=4", "sampler.images_per_class=2"]
    whole = made(tiny_run, tmp_path / "whole", *overrides)
    steps = len(whole.data.train_dataloader())
    assert steps > 2, "the interruption must fall within an epoch"
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps + 2, save_top_k=-1)
    whole.trainer.callbacks.append(every)
    fitted(whole)
    resumed = fitted(
        made(tiny_run, tmp_path / "resumed", *overrides), ckpt_path=tmp_path / f"step={steps + 2}.ckpt"
    )
    assert resumed.trainer.global_step == whole.trainer.global_step
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in resumed.learner.state_dict().items())


def test_an_image_that_is_query_and_gallery_does_not_find_itself(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")
    split = run.data.split
    run.data.split = dataclasses.replace(split, query=split.query[1:])
    measured = measure(run.learner.embedder, run.data, run.evaluate, seed=0, draws=1, resamples=0)
    found = measured.gallery.ids[measured.unseen.neighbours.positions[:, 0]]
    assert not (found == measured.queries.ids).any()


def test_the_validation_metrics_are_those_of_the_measured_weights(tiny_run, tmp_path):
    run = made(
        tiny_run, tmp_path, "sampler.classes_per_batch=2", "protocol=holdout", "protocol.class_fraction=0.5"
    )
    measured = measure(run.learner.embedder, run.data, run.evaluate, seed=0, draws=1, resamples=0)
    before = measured.metrics["validation"]
    rows = run.data.split.validation
    images = embed(run.learner.embedder, run.data.loader(rows))
    assert before == dict(run.evaluate(images.embeddings, images.labels).metrics)
    record = execute(run)
    chosen = embed(run.learner.embedder, run.data.loader(rows))
    assert record.metrics["validation"] == dict(run.evaluate(chosen.embeddings, chosen.labels).metrics)


def test_a_run_that_fails_leaves_a_record_with_its_error(tiny_run, tmp_path, monkeypatch):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")
    (tmp_path / "record.json").write_text("of an earlier run")

    def fail(*arguments):
        raise RuntimeError("the loss broke")

    monkeypatch.setattr(run.learner, "training_step", fail)
    with pytest.raises(RuntimeError, match="the loss broke"):
        execute(run)
    record = RunRecord.load(tmp_path / "record.json")
    assert (record.status, record.error, record.metrics) == ("failed", "RuntimeError: the loss broke", {})
    assert record.job_key == run.job_key


def test_a_run_that_fails_after_it_was_measured_keeps_its_results(tiny_run, tmp_path, monkeypatch):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")

    def fail(*arguments, **more):
        raise RuntimeError("no more")

    monkeypatch.setattr("unseen.workflow.run.measure_probe", fail)
    with pytest.raises(RuntimeError, match="no more"):
        execute(run)
    record = RunRecord.load(tmp_path / "record.json")
    assert (record.status, record.error) == ("failed", "RuntimeError: no more")
    assert record.metrics["unseen"]["recall_at_1"] >= 0
    assert (tmp_path / "queries.npz").is_file()


def test_a_failure_is_not_hidden_by_a_record_that_cannot_be_written(tiny_run, tmp_path, monkeypatch):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")

    def fail(*arguments):
        raise RuntimeError("the loss broke")

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(run.learner, "training_step", fail)
    monkeypatch.setattr(RunRecord, "save", full)
    with pytest.raises(RuntimeError, match="the loss broke"):
        execute(run)


def test_an_adversary_whose_gradient_reaches_nothing_is_refused(tiny_run, tmp_path):
    with pytest.raises(ValueError, match=r"trainable=none.*GradientReversal.*adversary=none"):
        made(tiny_run, tmp_path, "ablation=cann", "trainable=none")


def test_an_adversary_only_watches_while_the_backbone_rests(tiny_run, tmp_path):
    rests = ["optimizer.frozen_backbone_epochs=1", "adversary.silent_epochs=0"]
    run = made(tiny_run, tmp_path, "ablation=cann", *rests, "sampler.classes_per_batch=4")
    head = copy.deepcopy(run.learner.adversary.head.state_dict())
    fitted(run)
    learned = run.learner.adversary.head.state_dict()
    assert any(not torch.equal(head[name], value) for name, value in learned.items())


def test_overfitting_sees_the_same_batches_again_and_again(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "debug=overfit", "trainer.max_epochs=3", "sampler.classes_per_batch=4")
    seen = []

    class Witness(Callback):
        def on_train_batch_start(self, trainer, learner, batch, index):
            seen.append(batch.ids.tolist())

    run.trainer.callbacks.append(Witness())
    fitted(run)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]


def validation_rows():
    """27 images of four classes, and a learner that has not learned."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(27) % 4
    colour = torch.randint(40, 200, (4, 3, 1, 1), generator=generator)[labels]
    noise = torch.randint(0, 55, (27, 3, 32, 32), generator=generator)
    return Batch((colour + noise).to(torch.uint8), labels, torch.arange(27))


def validated(learner, batches):
    logged = {}
    learner.eval()
    learner.log = lambda name, value, **_: logged.update({name: value})
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            learner.validation_step(batch, index)
        learner.on_validation_epoch_end()
    return logged


def validated_part(rank, world, learner):
    """Every world-th image, the first again so that parts are equal: what a distributed sampler gives."""
    rows = torch.arange(27)
    rows = torch.cat([rows, rows[: -27 % world]])[rank::world]
    whole = validation_rows()
    return validated(learner, [Batch(*(column[part] for column in whole[:3])) for part in rows.split(8)])


def test_validation_of_several_processes_is_that_of_one(tiny_run, tmp_path, on_ranks):
    run = made(tiny_run, tmp_path / "run", "sampler.classes_per_batch=4")
    images = validation_rows()
    wanted = run.evaluate(embed(run.learner.embedder, [images]).embeddings, images.labels).metrics
    found = on_ranks(2, functools.partial(validated_part, learner=run.learner))
    assert found[0] == found[1]
    assert found[0] == pytest.approx({f"validation/{name}": value for name, value in wanted.items()})


def test_validation_embeds_in_float32_whatever_the_precision_of_training(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")
    seen = []
    run.learner.validation.update = lambda embeddings, labels, ids: seen.append(embeddings)
    images = validation_rows()
    run.learner.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        run.learner.validation_step(images, 0)
    assert torch.equal(seen[0], embed(run.learner.embedder, [images]).embeddings)


def test_a_second_validation_forgets_the_first(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "sampler.classes_per_batch=4")
    first = validated(run.learner, [validation_rows()])
    assert "validation/recall_at_1" in first
    assert validated(run.learner, [validation_rows()]) == first
    assert not [name for name in run.learner.state_dict() if name.startswith("validation")]
