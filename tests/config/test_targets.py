"""A configuration from a stranger makes parts of trusted packages, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from unseen.config.build import build_data
from unseen.config.command_line import check_overrides, load_config
from unseen.config.export import export
from unseen.config.targets import TRUSTED, instantiate
from unseen.config.values import UsageError
from unseen.targets import UntrustedError, located

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_whatever_the_configuration_names_is_trusted(path: Path) -> None:
    for target in re.findall(r"_target_: (\S+)", path.read_text(encoding="utf-8")):
        assert callable(located(target, TRUSTED))


def test_the_page_names_what_is_trusted() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## What is trusted")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    named = {
        f"{package}.{module}" for package, modules in rows for module in re.findall(r"`([\w.]+)`", modules)
    }
    assert named - {"lightning.pytorch"} == {
        name.replace("lightning.pytorch.", "lightning.") for name in TRUSTED
    }


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "torch.load",
        "torch.hub.load",
        "builtins.eval",
        "unseen.sweep.process.start",
        "unseen.losses_of_mine.Loss",
        "unseen.nn.weights.torch.load",
        "unseen.nn.weights.load_file",
        "unseen.nn.weights._read",
        "torch.nn.modules.module.functools.partial",
        "torchvision.transforms.v2._utils.inspect",
    ],
)
def test_what_lies_or_leads_elsewhere_is_refused_with_key_value_and_remedy(target: str) -> None:
    config = OmegaConf.create({"loss": {"parts": [{"inner": {"_target_": target}}]}})
    with pytest.raises(UsageError) as refused:
        instantiate(config.loss)
    message = str(refused.value)
    assert message.startswith(f"loss.parts.0.inner._target_={target}: ")
    assert f"UNSEEN_TRUSTED={target.split('.')[0]} in the environment" in message


def test_a_reference_hides_nothing() -> None:
    config = OmegaConf.create({"name": "os.system", "loss": {"_target_": "${name}", "command": "true"}})
    with pytest.raises(UsageError, match=r"loss\._target_=os\.system"):
        instantiate(config.loss)


def test_nothing_is_made_of_nothing() -> None:
    assert instantiate(None) is None
    assert instantiate(OmegaConf.create({"loss": None}).loss) is None


def test_what_the_user_trusts_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"_target_": "fractions.Fraction", "_args_": [1, 2]})
    with pytest.raises(UsageError, match="UNSEEN_TRUSTED=fractions"):
        instantiate(config)
    monkeypatch.setenv("UNSEEN_TRUSTED", "decimal, fractions")
    assert instantiate(config) == 0.5


def test_a_name_that_leads_nowhere_is_an_import_error() -> None:
    for name in ("torch.nn.Nothing", "torch.nn.nowhere.Nothing"):
        with pytest.raises(ImportError, match=r"torch\.nn"):
            located(name, TRUSTED)
    with pytest.raises(UntrustedError):
        located("nowhere.Nothing", TRUSTED)


def own_group(folder: Path, group: str, text: str) -> str:
    (folder / group).mkdir()
    (folder / group / "theirs.yaml").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("group", "text", "key"),
    [
        ("loss", "_target_: os.system\ncommand: touch {file}\n", "loss._target_=os.system"),
        (
            "callbacks",
            "mine: [{{_target_: subprocess.run, args: touch {file}}}]\n",
            "callbacks.mine.0._target_=subprocess.run",
        ),
        (
            "experiment",
            "# @package _global_\n"
            "hydra: {{callbacks: {{mine: {{_target_: os.system, command: touch {file}}}}}}}\n",
            "hydra.callbacks.mine._target_=os.system",
        ),
        (
            "experiment",
            "# @package _global_\n"
            "hydra: {{job_logging: {{handlers: {{file: {{class: subprocess.Popen, args: [touch, {file}]}}}}}}"
            "}}\n",
            "hydra.job_logging.handlers.file.class=subprocess.Popen",
        ),
        (
            "experiment",
            "# @package _global_\n"
            "hydra: {{job_logging: {{filters: {{mine: {{(): os.system, command: touch {file}}}}}}}}}\n",
            "hydra.job_logging.filters.mine.()=os.system",
        ),
    ],
    ids=["part", "list", "hydra's callbacks", "class of a handler", "factory of a filter"],
)
def test_groups_of_a_stranger_are_refused_before_anything_runs(
    tmp_path: Path, group: str, text: str, key: str
) -> None:
    marker = tmp_path / "marker"
    folder = own_group(tmp_path, group, text.format(file=marker))
    with pytest.raises(UsageError, match=re.escape(key)):
        check_overrides("train", [f"{group}=theirs"], folder)
    assert not marker.exists()


def test_the_library_refuses_as_the_command_line_does() -> None:
    for look in (lambda words: check_overrides("train", words), load_config):
        with pytest.raises(UsageError, match=r"callbacks\.mine\._target_=os\.system: .*UNSEEN_TRUSTED=os"):
            look(["+callbacks.mine._target_=os.system", "+callbacks.mine.command=true"])


def test_a_record_of_a_stranger_runs_nothing(tmp_path: Path) -> None:
    """`unseen export` rebuilds the run from what its record says."""
    marker = tmp_path / "marker"
    harm = {"_target_": "os.system", "command": f"touch {marker}"}
    config: dict[str, Any] = {"backbone": {**harm, "weights": "none"}, "fusion": harm, "embedding": {}}
    record = {
        "choices": {}, "seed": 0, "config": config, "split": "", "manifest": "", "metrics": {}, "seconds": {},
        "schema": 2, "finished": "", "peak_memory": {}, "environment": {},
    }  # fmt: skip
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UsageError, match=r"backbone\._target_=os\.system"):
        export(tmp_path)
    with pytest.raises(UsageError, match=r"data\.source\._target_=os\.system"):
        build_data(OmegaConf.create({"data": {"source": harm}}))
    assert not marker.exists()
