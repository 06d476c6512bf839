"""Small jobs of sweeps, and callbacks that make them misbehave."""

import os

import pytest

CALLBACKS = """
import os, signal, time
from pathlib import Path
from lightning import Callback

class Dies(Callback):
    '''Kills this process and the one that started it in the second epoch, once.'''

    def __init__(self, marker):
        self.marker = Path(marker)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

class Fails(Callback):
    '''Fails as long as a file is there.'''

    def __init__(self, marker):
        self.marker = Path(marker)

    def on_train_start(self, *_):
        if self.marker.exists():
            raise RuntimeError("the disk is full\\nas it was yesterday")

class Uploads(Callback):
    def __init__(self, api_key, note):
        assert api_key == "typed-by-the-user" and note == os.environ["WANDB_API_KEY"]

class Slow(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.5)
"""


@pytest.fixture
def small(tiny_run):
    """Overrides of jobs of six steps in two epochs, which save after each."""
    return [
        *(word for word in tiny_run if not word.startswith("trainer.max_epochs")),
        "trainer.max_epochs=2", "sampler=class_balanced", "sampler.classes_per_batch=4",
        "sampler.images_per_class=2", "save_every=0", "pictures=false", "evaluation.probe_classes=0",
        "evaluation.resamples=10", "evaluation.draws=1", "sweep_folder=sweep",
    ]  # fmt: skip


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """`misbehaving("Dies", marker=…)`: overrides that add one of `CALLBACKS` to a run of any process."""
    (tmp_path / "callbacks_of_a_test.py").write_text(CALLBACKS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("UNSEEN_TRUSTED", "callbacks_of_a_test")

    def callback(name, **arguments):
        given = [f"+callbacks.mine._target_=callbacks_of_a_test.{name}"]
        return given + [f"+callbacks.mine.{key}={value}" for key, value in arguments.items()]

    return callback


@pytest.fixture
def start(begin, tmp_path, misbehaving):
    """`start("sweep", …)`: the command, begun in a folder of its own."""
    return lambda *words, **more: begin(*words, folder=tmp_path, environment={"COLUMNS": "200", **more})


@pytest.fixture
def unseen(start):
    """`unseen("sweep", …)`: status and output."""

    def run(*words, **more):
        process = start(*words, **more)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output + errors

    return run
