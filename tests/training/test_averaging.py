"""Averages of weights: those of a plain loop over the steps, validated, saved and deployed; exact on resume."""

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
    "trainer.max_epochs=2", "sampler.classes_per_batch=2", "sampler.images_per_class=2",
    "protocol=holdout", "protocol.class_fraction=0.5", "embedding.size=6", "pictures=false",
    "evaluation.draws=1", "evaluation.resamples=0", "evaluation.probe_classes=0",
]  # fmt: skip


def made(tiny_run, folder, *overrides):
    return build(load_config([*tiny_run, *STEPS, *overrides], run_folder=str(folder)))


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
    run.trainer.callbacks.insert(1, watch or Watches())
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=resume_from)
    return run


def by_a_loop(watch, decay, first, trained, until):
    """The same in NumPy: steps from `first` on, all alike without a decay, then mixed with the start."""
    average, count = watch.steps[until - 1], 0
    for weights in watch.steps[first:until]:
        share = 1 / (count + 1) if decay is None else 1 - min(decay, (1 + count) / (10 + count))
        share = 1 if count == 0 else share
        average = {name: value + share * (weights[name] - value) for name, value in average.items()}
        count += 1
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
    watch = run.trainer.callbacks[1]
    steps = len(watch.steps)
    assert steps >= 8
    # The share of training that is done after a step counts: half of it after the steps / 2 th.
    first = int(np.ceil(steps / 2)) - 1 if first is None else first
    for epoch, shown in enumerate(watch.validated, start=1):
        until = steps * epoch // 2
        # A mean that has not begun leaves the weights of the last step.
        assert_same(shown, by_a_loop(watch, decay, first, trained, until))
    assert_same(averaged(run.learner), by_a_loop(watch, decay, first, trained, steps))
    held = run.learner.embedder.readout.directions.clone()
    fit_readout(run.learner.embedder, run.data)
    torch.testing.assert_close(run.learner.embedder.readout.directions, held, rtol=0, atol=0)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in run.learner.embedder.state_dict().items():
        assert torch.equal(saved["state_dict"][f"embedder.{name}"], value), name
    last = {name: value.double().numpy() for name, value in saved["averaging"]["weights"].items()}
    assert_same(last, watch.steps[-1])


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fitted(tiny_run, folder, *EMA, "averaging.trained=0.7", "save_every=0", "loss=norm_softmax")


@pytest.mark.parametrize("watch", [StopsBefore(3), StopsBefore(5), FailsInValidation(0)])
def test_a_run_that_stops_anywhere_goes_on_as_if_it_never_had(tiny_run, tmp_path, whole, watch):
    overrides = [*EMA, "averaging.trained=0.7", "save_every=0", "loss=norm_softmax"]
    with pytest.raises(KeyError):
        fitted(tiny_run, tmp_path, *overrides, watch=watch)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = fitted(tiny_run, tmp_path, *overrides, resume_from=last)
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in resumed.learner.state_dict().items())
    saved, resaved = (
        torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["averaging"]
        for run in (whole, resumed)
    )
    assert saved["averaged"] == resaved["averaged"]
    for kind in ("weights", "average"):
        assert all(torch.equal(saved[kind][name], value) for name, value in resaved[kind].items())


def test_a_run_with_nothing_left_to_train_is_measured_by_its_averages(tiny_run, tmp_path, whole):
    overrides = [*EMA, "averaging.trained=0.7", "save_every=0", "loss=norm_softmax"]
    again = fitted(
        tiny_run, tmp_path, *overrides, resume_from=whole.folder / "checkpoints" / "last.ckpt"
    )
    assert again.trainer.global_step == whole.trainer.global_step
    wanted = whole.learner.state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in again.learner.state_dict().items())


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
