"""Each group is described once: `--help` and README's table say the same."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unseen.config.command_line import UsageError, config_folder, help_text, load_config
from unseen.config.groups import markdown_table, read_groups

README = Path(__file__).resolve().parents[2] / "README.md"


COMMANDS = ("train", "sweep", "report", "tune", "export", "embed", "index")


def groups(*commands):
    return [group for name in commands or COMMANDS for group in read_groups([config_folder()], name)]


def test_the_table_of_the_readme_is_made_from_the_configuration():
    table = markdown_table(groups())
    assert table in README.read_text(encoding="utf-8"), (
        f"Put this in the place of README's table:\n\n{table}\n"
    )


def test_every_group_is_described_and_every_described_group_is_there():
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()}
    described = OmegaConf.load(config_folder() / "groups.yaml")
    assert set(described) == folders == {group.name for group in groups()}
    assert all(described.values())


def test_every_choice_says_what_it_is():
    silent = [
        f"{group.name}={choice}" for group in groups() for choice, text in group.choices.items() if not text
    ]
    assert silent == []


def test_the_default_is_a_choice():
    for group in groups():
        assert group.default is None or group.default in group.choices


def test_help_shows_groups_choices_and_defaults_and_a_group_in_words():
    text = help_text("train")
    for group in groups("train"):
        assert group.decides in text
    assert "`unseen sweep`: where its runs take place" in help_text("sweep")
    assert "multi_similarity*" in text
    assert "_pairs" not in text
    assert "Hermans et al. 2017" in help_text("train", named=["miner"])
    with pytest.raises(UsageError, match="did you mean 'miner'"):
        help_text("train", named=["minr"])


def test_a_users_own_groups_and_choices_are_shown(tmp_path):
    for name, comment in (("loss/mine", "# Mine.\n"), ("extra/one", "# One.\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(comment + json.dumps({"a": 1}))
    assert " mine " in help_text("train", str(tmp_path))
    assert "extra" in help_text("train", str(tmp_path))
    assert "One." in help_text("train", str(tmp_path), ["extra"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["triplet", "norm_softmax"])
def test_the_papers_settings_go_with_any_loss(loss):
    for overrides in (["experiment=paper", f"loss={loss}"], [f"loss={loss}", "experiment=paper"]):
        config = load_config([*overrides, "data=folder", "data.root=/images"])
        assert config.loss == load_config([f"loss={loss}", "data=folder", "data.root=/images"]).loss
        assert (config.embedding.size, config.trainer.max_epochs) == (64, 25)
        assert config.optimizer.algorithm.eps == 0.01
