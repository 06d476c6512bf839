"""Freed tensors are used again without asking the system: page faults, counted by the kernel, stay away."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch, unseen.training.learner
from unseen.training.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 2**20)
before = faults()
for _ in range(10):
    torch.ones(16 * 2**20)  # 64 MiB
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_kept_memory_is_not_faulted_in_again():
    def count(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert count("keep") < count("plain") / 5
