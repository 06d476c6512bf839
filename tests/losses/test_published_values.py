"""The table of docs/losses.md states what the command line composes, and leaves no number of a loss out."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from unseen.config.command_line import load_config
from unseen.losses import WeightedSum

ROOT = Path(__file__).parents[2]
PAGE = ROOT.joinpath("docs/losses.md").read_text()
# | `choice` | paper | `key` | `ours` | theirs | why |
ROWS = re.findall(r"^\| `([^`]+)` \|[^|]*\| `([^`]+)` \| `([^`]+)` \|[^|]+\|[^|]*\|$", PAGE, re.MULTILINE)
# A combined loss has no published values of its own.
LOSSES = sorted(
    f"loss={path.stem}" for path in ROOT.joinpath("conf/loss").glob("[!_]*.yaml") if path.stem != "combined"
)

composed = cache(lambda choice: load_config([choice]))


def numbers_of(config, part):
    node = OmegaConf.select(config, part)
    values = OmegaConf.to_container(node, resolve=True) if node else {}
    return {
        f"{part}.{key}"
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def test_every_line_of_the_table_is_read():
    assert len(ROWS) == PAGE.count("\n| `")
    assert len(set(ROWS)) == len(ROWS)
    assert {choice for choice, *_ in ROWS} == {*LOSSES, "memory=cross_batch"}


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "key", "ours"), ROWS, ids=lambda value: value)
def test_the_composed_value_is_the_one_of_the_table(choice, key, ours):
    # The same reader as for YAML files: 1e-2 is a number.
    stated = OmegaConf.create(f"value: {ours}").value
    got = OmegaConf.select(composed(choice), key, throw_on_missing=True)
    assert type(got) is type(stated)
    assert got == stated


@pytest.mark.parametrize("choice", LOSSES)
def test_no_number_of_a_loss_or_its_miner_is_left_out(choice):
    config = composed(choice)
    numbers = numbers_of(config, "loss.function") | numbers_of(config, "miner")
    assert numbers
    assert numbers <= {key for row, key, _ in ROWS if row == choice}


def test_the_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(example, names)
    assert isinstance(names["loss"], WeightedSum)
    value = names["loss"](torch.randn(8, 128), torch.arange(8) // 2, torch.arange(8))
    assert torch.isfinite(value)
