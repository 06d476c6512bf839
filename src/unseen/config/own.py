"""Keys of a command that starts runs, told apart from those of the runs themselves."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from unseen.config.command_line import check_overrides, config_folder, in_a_line, searched
from unseen.config.groups import read_groups
from unseen.config.values import UsageError
from unseen.sweep.lock import KINDS


def divided(typed: Sequence[str], config_name: str) -> tuple[list[str], list[str]]:
    """Overrides of the command itself (keys and groups of its primary config), and those of its runs."""
    keys = set(OmegaConf.load(config_folder() / f"{config_name}.yaml")) - {"defaults", "hydra"}
    keys |= {group.name for group in read_groups([config_folder()], config_name)}
    own = [word for word in typed if key_of_word(word).partition(".")[0] in keys]
    return own, [word for word in typed if word not in own]


def key_of_word(word: str) -> str:
    """Group or dotted key of an override; empty for what cannot be read."""
    try:
        return str(OverridesParser.create().parse_override(word).key_or_group)
    except HydraException:
        return ""  # refused with the overrides of runs, in words


def own_config(own: Sequence[str], config_name: str, config_dir: str | None) -> DictConfig:
    """The command's own config, checked.

    Raises:
        UsageError: naming the key, the value and the choices.
    """
    check_overrides(config_name, own, config_dir)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            return compose(config_name, overrides=[*searched(config_dir), *own])
        except HydraException as error:
            raise UsageError(in_a_line(error)) from error


def own_settings(own: Sequence[str], config_name: str, config_dir: str | None) -> DictConfig:
    """The own config of a command that runs jobs.

    Raises:
        UsageError: naming the key, the value and the choices.
    """
    settings = own_config(own, config_name, config_dir)
    if settings.lock not in KINDS:
        raise UsageError(f"lock={settings.lock}: choices are {', '.join(KINDS)}.")
    return settings
