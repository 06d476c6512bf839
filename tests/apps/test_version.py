"""`unseen version`: what a bug report needs."""

import platform
import subprocess
import sys
from importlib.metadata import version


def test_it_names_versions_commit_and_machine():
    result = subprocess.run(
        [sys.executable, "-m", "unseen", "version"], capture_output=True, text=True, timeout=120, check=True
    )
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == version("torch")
    assert facts["lightning"] == version("lightning")
    assert facts["system"] == platform.platform()
    assert int(facts["cores"]) >= 1
    assert facts["memory"].endswith(" GiB")
    assert {"unseen-dml", "commit", "processor", "accelerators"} <= facts.keys()
