"""What answers at once: help and refusals load nothing that takes seconds."""

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "timm", "numpy", "wandb", "PIL"}
LOADED = """
import runpy, sys
sys.argv = ["unseen", *sys.argv[1:]]
try:
    runpy.run_module("unseen", run_name="__main__", alter_sys=False)
finally:
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded(*arguments):
    """Exit status, output, and the packages that were loaded."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *output, packages = result.stdout.splitlines()
    return result.returncode, "\n".join(output) + result.stderr, set(packages.split()[1:])


@pytest.mark.parametrize("arguments", [(), ("--help",), ("trian",)])
def test_the_list_of_commands_loads_no_command(arguments):
    status, output, packages = loaded(*arguments)
    assert status == (2 if "trian" in arguments else 0)
    for command in ("check", "prepare", "report", "train"):
        assert f"  {command}" in output
    assert not packages & (HEAVY | {"hydra", "omegaconf"})


@pytest.mark.parametrize("command", ["train", "sweep", "check", "prepare", "report"])
def test_help_of_a_command_loads_no_network(command):
    status, output, packages = loaded(command, "--help")
    assert status == 0, output
    assert f"unseen {command}" in output
    assert not packages & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "loss=tripplet"),
        ("train", "trainer.max_epochs=three"),
        ("check", "data=foldr"),
        ("prepare", "data=cbu"),
        ("prepare", "data=glyphs"),
        ("report", "margin=half"),
        ("export",),
        ("export", "bundle=here"),
        ("export", "run=here", "bundle=there", "format=onnx"),
        ("export", "run=here", "images=photos", "format=onnx"),
        ("export", "bundle=here", "format=onxn"),
        ("report", "reference_=baseline"),
    ],
)
def test_a_refusal_loads_no_network(arguments):
    status, output, packages = loaded(*arguments)
    assert status == 2
    assert "error: " in output
    assert not packages & HEAVY
