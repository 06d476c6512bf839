"""What several rooms' tests need: a tiny set of images that a tiny network can learn."""

import gc
import multiprocessing
import os
import signal
import subprocess
import tempfile
from pathlib import Path

# Test processes share the cores: threads of their own would wait for each other. Set before torch reads it.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // processes)))

# Else Ray's workers wait for all that the machine does (nice 15), more are begun than are needed, and they
# are killed where others have filled the memory.
os.environ |= {
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image

# What takes long first: what begins last would run alone at the end.
FIRST = (
    "tests/training/test_processes.py",
    "tests/training/test_regularizer.py",
    "tests/training/test_learner.py",
    "tests/apps/test_sweep.py",
    "tests/apps/test_launchers.py",
    "tests/test_notebooks.py",
    "tests/training/test_resume.py",
    "tests/docs/test_snippets.py",
    "tests/deploy/test_exchange.py",
    "tests/apps/test_train.py",
    "tests/apps/test_tune.py",
    "tests/workflow/test_feature_maps.py",
    "tests/deploy/runners/test_ray.py",
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


def pytest_sessionstart():
    # The first backward counts the devices that autograd needs threads for. Exporting and compiling pretend
    # that there is a GPU: were they first, there would be threads, and forked processes could not learn.
    torch.zeros(1, requires_grad=True).sum().backward()


def pytest_collection_finish():
    # What was imported stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def coloured_tree(tmp_path_factory):
    """Eight classes of noise, eight images each; every class has a colour of its own."""
    root = tmp_path_factory.mktemp("coloured")
    generator = np.random.default_rng(0)
    for label in range(8):
        (root / f"class {label}").mkdir()
        colour = generator.integers(40, 216, 3)
        for index in range(8):
            pixels = (colour + generator.normal(0, 25, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class {label}" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tiny_run(coloured_tree):
    """Overrides of the smallest run that still learns."""
    return [
        "data=folder",
        f"data.root={coloured_tree}",
        "backbone=resnet10",
        "optimizer=scratch",
        "transforms=whole",
        "data.image_size=32",
        "data.workers=0",
        "callbacks=quiet",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]


def _in_process(rank, world, work, folder):
    torch.set_num_threads(1)
    # They meet at a file: a port that is free now may be taken by the time that it is listened at.
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


AS_TYPED = Path(__file__).with_name("warm.py").read_text(encoding="utf-8") + "\nas_typed(**given)\n"
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["lightning", "torchmetrics", "unseen.config.build"])


class Typed:
    """A command that was begun, with what tests need of `subprocess.Popen`."""

    def __init__(self, words, folder, environment):
        self.args = words
        self._outputs = tempfile.TemporaryDirectory()
        given = {"words": list(map(str, words)), "folder": str(folder), "outputs": self._outputs.name}
        given["environment"] = {**os.environ, **environment}
        self._process = WARM.Process(target=exec, args=(AS_TYPED, {"__name__": "warm", "given": given}))
        self._process.start()

    def poll(self):
        return self._process.exitcode

    returncode = property(poll)

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def communicate(self, timeout=300):
        self._process.join(timeout)
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        written = [Path(self._outputs.name, stream) for stream in "12"]
        return tuple(path.read_text() if path.exists() else "" for path in written)


@pytest.fixture(scope="session")
def begin():
    """`begin("train", …, folder=…, environment={…})`: the command, begun in a process of its own."""
    return lambda *words, folder, environment: Typed(words, folder, environment)


@pytest.fixture(scope="session")
def typed(begin):
    """`typed("train", …, folder=…, environment={…})`: how it ended, with its output."""

    def run(*words, folder, environment=None):
        process = begin(*words, folder=folder, environment=environment or {})
        output, errors = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return run


@pytest.fixture
def on_ranks(tmp_path):
    """`on_ranks(world, work)`: what `work(rank, world)` returns in each of as many processes."""

    def run(world, work):
        folder = tempfile.mkdtemp(dir=tmp_path)
        torch.multiprocessing.start_processes(
            _in_process, (world, work, folder), nprocs=world, start_method="fork"
        )
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(world)]

    return run
