"""Averages of weights: those of a plain loop over the steps, validated, saved, deployed, resumed exactly."""

import numpy as np
import pytest
import torch
from lightning import Callback

from unseen.config.build import build
from unseen.config.command_line import UsageError, building, load_config
from unseen.evaluation.readout import fit_readout
from unseen.training.averaging import WeightAveraging, equal, exponential
from unseen.training.progress import quiet
from unseen.workflow.run import execute

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS = [
    "trainer.max_epochs=3", "sampler.classes_per_batch=2", "sampler.images_per_class=2", "embedding.size=6",
    "pictures=false", "evaluation.draws=1", "evaluation.resamples=0", "evaluation.probe_classes=0",
]  # fmt: skip


HOLDOUT = ["protocol=holdout", "protocol.class_fraction=0.5"]


def made(tiny_run, folder, *overrides):
    protocol = [] if "protocol=fixed" in overrides else HOLDOUT
    return build(load_config([*tiny_run, *STEPS, *protocol, *overrides], run_folder=str(folder)))


def averaged(learner):
    """What is averaged, as NumPy arrays of double precision."""
    return {
        name: value.detach().double().numpy().copy()
        for name, value in learner.embedder.state_dict().items()
        if value.is_floating_point() and "readout" not in name
    }


class Watches(Callback):
    """The weights at the start, after each step, and whenever they are validated."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_fit_start(self, trainer, learner):
        self.start = averaged(learner)

    def on_train_batch_end(self, trainer, learner, *_):
        self.steps.append(averaged(learner))

    def on_validation_epoch_start(self, trainer, learner):
        self.validated.append(averaged(learner))


class FailsInValidation(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise KeyError("validation broke")


class StopsBefore(Callback):
    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyError("stopped")


def fitted(tiny_run, folder, *overrides, watch=None, resume_from=None):
    run = made(tiny_run, folder, *overrides)
    places = [place for place, one in enumerate(run.trainer.callbacks) if isinstance(one, WeightAveraging)]
    run.trainer.callbacks.insert(max(places, default=0) + 1, watch or Watches())
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=resume_from)
    return run


def by_a_loop(watch, decay, first, trained, until):
    """The same in NumPy: steps from `first` on, all alike without a decay, then mixed with the start."""
    average = watch.steps[until - 1]
    for count, weights in enumerate(watch.steps[first:until]):
        share = 1 / (count + 1) if decay is None else 1 - min(decay, (1 + count) / (10 + count))
        share = 1 if count == 0 else share
        average = {name: value + share * (weights[name] - value) for name, value in average.items()}
    return {
        name: trained * value + (1 - trained) * watch.start[name] if name.startswith("backbone") else value
        for name, value in average.items()
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


EMA = ["averaging=ema", "averaging.share.decay=0.6"]
CASES = {
    "ema": (EMA, 0.6, 0, 1.0),
    "swa": (["averaging=swa", "averaging.start=0.5"], None, None, 1.0),
    "wise_ft": (["averaging=wise_ft", "averaging.trained=0.3"], 0.0, 0, 0.3),
    "both": ([*EMA, "averaging.trained=0.7"], 0.6, 0, 0.7),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loop_over_the_weights_of_the_steps_gives_what_is_validated_saved_and_deployed(
    tiny_run, tmp_path, case
):
    overrides, decay, first, trained = CASES[case]
    run = fitted(tiny_run, tmp_path, *overrides)
    watch = next(one for one in run.trainer.callbacks if isinstance(one, Watches))
    steps = len(watch.steps)
    assert steps >= 8
    # The share of training that is done after a step counts: half of it after the steps / 2 th.
    first = int(np.ceil(steps / 2)) - 1 if first is None else first
    for epoch, shown in enumerate(watch.validated, start=1):
        until = steps * epoch // 3
        # A mean that has not begun leaves the weights of the last step.
        assert_same(shown, by_a_loop(watch, decay, first, trained, until))
    assert_same(averaged(run.learner), by_a_loop(watch, decay, first, trained, steps))
    held = run.learner.embedder.readout.directions.clone()
    fit_readout(run.learner.embedder, run.data)
    torch.testing.assert_close(run.learner.embedder.readout.directions, held, rtol=0, atol=0)
    # With validation the last checkpoint is of the last epoch that was the best so far.
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    until, embedder = saved["global_step"], run.learner.embedder
    last = {name: value.double().numpy() for name, value in saved["averaging"]["weights"].items()}
    assert_same(last, watch.steps[until - 1])
    state = {name: value for name, value in saved["state_dict"].items() if name.startswith("embedder.")}
    embedder.load_state_dict({name.removeprefix("embedder."): value for name, value in state.items()})
    assert_same(averaged(run.learner), by_a_loop(watch, decay, first, trained, until))
    fit_readout(embedder, run.data)
    assert torch.equal(state["embedder.readout.directions"], embedder.readout.directions)


RESUMED = [*EMA, "averaging.trained=0.7", "optimizer.l2_sp=5", "save_every=0", "loss=margin"]


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    return fitted(tiny_run, tmp_path_factory.mktemp("whole"), *RESUMED)


@pytest.mark.parametrize("watch", [StopsBefore(3), StopsBefore(7), FailsInValidation(0)])
def test_a_run_that_stops_anywhere_goes_on_as_if_it_never_had(tiny_run, tmp_path, whole, watch):
    with pytest.raises(KeyError):
        fitted(tiny_run, tmp_path, *RESUMED, watch=watch)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = fitted(tiny_run, tmp_path, *RESUMED, resume_from=last)
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in resumed.learner.state_dict().items())
    whole.trainer.save_checkpoint(tmp_path / "whole.ckpt")
    resumed.trainer.save_checkpoint(tmp_path / "resumed.ckpt")
    one, other = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["averaging"] for name in ("whole", "resumed")
    )
    assert one["averaged"] == other["averaged"]
    for kind in ("weights", "average"):
        assert all(torch.equal(one[kind][name], value) for name, value in other[kind].items())


def test_without_validation_the_last_checkpoint_is_what_is_deployed_and_a_resume_finds_nothing_left(
    tiny_run, tmp_path
):
    overrides = [*EMA, "protocol=fixed"]
    first = fitted(tiny_run, tmp_path, *overrides)
    last = tmp_path / "checkpoints" / "last.ckpt"
    again = fitted(tiny_run, tmp_path, *overrides, resume_from=last)
    assert again.trainer.global_step == first.trainer.global_step
    saved = torch.load(last, weights_only=True)
    for name, value in first.learner.state_dict().items():
        assert torch.equal(again.learner.state_dict()[name], value), name
        assert torch.equal(saved["state_dict"][name], value), name
    trained = saved["averaging"]["weights"]["projection.weight"]
    assert not torch.equal(trained, saved["state_dict"]["embedder.projection.weight"])


def test_a_run_is_measured_and_exported_with_the_averages_of_the_chosen_epoch(tiny_run, tmp_path):
    from unseen.config.export import export
    from unseen.deploy.bundle import load

    run = made(tiny_run, tmp_path, *EMA)
    record = execute(run)
    chosen = torch.load(tmp_path / "checkpoints" / f"{record.chosen_epoch - 1:03d}.ckpt", weights_only=True)
    assert not torch.equal(
        chosen["averaging"]["weights"]["projection.weight"],
        chosen["state_dict"]["embedder.projection.weight"],
    )
    deployed = load(export(tmp_path)).embedder.state_dict()
    for name, value in run.learner.embedder.state_dict().items():
        assert torch.equal(value, deployed[name])
        assert torch.equal(value, chosen["state_dict"][f"embedder.{name}"])


def test_without_it_a_run_keeps_no_second_weights(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path)
    assert not any(isinstance(one, WeightAveraging) for one in run.trainer.callbacks)
    assert run.learner.pretrained is None
    assert not any("pretrained" in name for name in run.learner.state_dict())


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("averaging.share.decay=1.0", r"decay=1\.0: the share"),
        ("averaging.start=1.0", r"start=1\.0: the share"),
        ("averaging.trained=1.2", r"trained=1\.2: the share"),
    ],
)
def test_impossible_values_are_refused_by_name(tiny_run, tmp_path, typed, words):
    with pytest.raises(UsageError, match=words), building():
        made(tiny_run, tmp_path, "averaging=ema", typed)


def test_shares_of_the_average():
    share = exponential(0.9)
    assert share(1) == pytest.approx(1 - 2 / 11)
    assert share(10_000) == pytest.approx(0.1)
    assert [equal(count) for count in (1, 2, 3)] == [1 / 2, 1 / 3, 1 / 4]
