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


@pytest.mark.parametrize("command", ["train", "sweep", "measure", "check", "prepare", "report"])
def test_help_of_a_command_loads_no_network(command):
    status, output, packages = loaded(command, "--help")
    assert status == 0, output
    assert f"unseen {command}" in output
    assert not packages & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "loss=tripplet"),
        ("train", "trainer.max_epochs=three"),
        ("train", "trainer.max_epochs=-3"),
        ("train", "seed=1.5"),
        ("train", "optimzer.learning_rates.backbone=1"),
        ("train", "+data.foo=3"),
        ("train", "trainer.accelerator=cpu", "trainer.devices=999"),
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


def unseen(*arguments, output, **environment):
    return subprocess.run(
        [sys.executable, "-m", "unseen", *arguments], env=os.environ | environment,
        stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_output_that_nobody_reads_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    result = unseen("train", "--help", output=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has such a file")
def test_output_that_has_no_room_is_said_in_words():
    with open("/dev/full", "w") as full:
        result = unseen("train", "--help", output=full)
    assert result.returncode == 2
    assert result.stderr == "error: [Errno 28] No space left on device. Make room, and run it again.\n"


def test_a_terminal_that_lacks_letters_shows_the_others():
    result = unseen("train", "--help", "adversary", output=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "grl" in result.stdout
