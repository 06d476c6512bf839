"""What several rooms' tests need: a tiny set of images that a tiny network can learn."""

import os
import socket

# Test processes share the cores: threads of their own would wait for each other. Set before torch reads it.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // processes)))

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image


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


def _in_process(rank, world, port, work, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture
def on_ranks(tmp_path):
    """`on_ranks(world, work)`: what `work(rank, world)` returns in each of as many processes."""

    def run(world, work):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.start_processes(
            _in_process, (world, port, work, str(tmp_path)), nprocs=world, start_method="fork"
        )
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]

    return run
