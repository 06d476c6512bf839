"""Freed tensors are used again without asking the system: page faults, counted by the kernel, stay away."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, types, torch
from unseen.data.batch import Batch
from unseen.deploy.model import Model
from unseen.evaluation.embed import embed
from unseen.nn.allocator import keep_freed_memory
torch.set_num_threads(1)

class Network(torch.nn.Linear):
    def forward(self, images):
        embedding = super().forward(images.float().mean((2, 3)))
        return types.SimpleNamespace(embedding=embedding)

network, images = Network(3, 2), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
first = {
    "nothing": lambda: None,
    "training": keep_freed_memory,
    "model": lambda: Model(network, torch.nn.Identity(), {}).embed(images),
    "evaluation": lambda: embed(network, [Batch(images, torch.zeros(1).long(), torch.zeros(1).long())]),
}
first[sys.argv[1]]()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# What is kept settles in the first few.
for step in range(60):
    if step == 10:
        before = faults()
    torch.ones(16 * 2**20)  # 64 MiB
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_memory_that_was_freed_is_not_faulted_in_again_by_whatever_computes():
    def count(first):
        done = subprocess.run([sys.executable, "-c", FAULTS, first], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    plain = count("nothing")
    assert max(count(first) for first in ("training", "model", "evaluation")) < plain / 5
