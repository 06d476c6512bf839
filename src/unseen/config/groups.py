"""The groups of choices, described once (`conf/groups.yaml`) for `--help` and for README's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from unseen.config.values import UsageError


class Group(NamedTuple):
    """One group: `name=choice` on the command line.

    Args:
        name: folder of the choices.
        decides: what it decides, in words; empty for a user's own group.
        default: the choice that the command names, which a loss, a data set or an ablation may override.
        choices: choice → its description, the comment that its file begins with.
    """

    name: str
    decides: str
    default: str | None
    choices: dict[str, str]

    def lines(self) -> list[str]:
        """The group on a terminal: a line for each choice."""
        width = max(map(len, self.choices))
        return [
            f"{self.name}: {self.decides}",
            *(f"  {choice:<{width}}  {text}".rstrip() for choice, text in self.choices.items()),
        ]


def read_groups(folders: Sequence[Path], config_name: str) -> list[Group]:
    """The groups that a command has, as `conf/groups.yaml` orders them, then a user's own.

    Args:
        folders: the configuration folder, then a user's own ones.
        config_name: primary config, `train` for `unseen train`.
    """
    described = OmegaConf.to_container(OmegaConf.load(folders[0] / "groups.yaml"))
    assert isinstance(described, dict)
    defaults = chosen_by(folders[0] / f"{config_name}.yaml")
    own = {path.name for folder in folders[1:] for path in folder.glob("*/")}
    names = [str(name) for name in described if name in defaults]
    names += sorted(own - set(names) - {"hydra"})
    return [
        Group(name, str(described.get(name, "")), defaults.get(name), choices(folders, name))
        for name in names
    ]


def chosen_by(config: Path) -> dict[str, str | None]:
    """Group → the choice that a primary config names, which may be none."""
    content = OmegaConf.load(config)
    entries = content.defaults if isinstance(content, DictConfig) else ListConfig([])
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, DictConfig)]
    return {str(group): choice for group, choice in pairs if not str(group).startswith("override ")}


def choices(folders: Sequence[Path], group: str) -> dict[str, str]:
    """Choice → its description; names that begin with an underscore are for other choices to include."""
    files = {path.stem: path for folder in folders for path in (folder / group).glob("[!_]*.yaml")}
    return {choice: _opening_comment(files[choice]) for choice in sorted(files)}


def check_own(folder: Path, ours: Path) -> None:
    """Refuse a user's own folder (`--config-dir`) of which a choice cannot be read.

    Args:
        folder: the user's; what lies in it beside choices of our groups is not looked at.
        ours: the configuration folder.

    Raises:
        UsageError: naming the file, and the line where there is one.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"--config-dir {folder}: {what}. Name a folder that holds <group>/<choice>.yaml.")
    for path in sorted(folder.glob("*/*.yaml")):
        if not (ours / path.parent.name).is_dir():
            continue
        try:
            content = OmegaConf.load(path)
        except UnicodeDecodeError as error:
            raise UsageError(f"'{path}' is not UTF-8 text ({error}). Save it as UTF-8.") from error
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {error.strerror or 'it is not YAML'}.") from error
        except Exception as error:  # the YAML library's own, which OmegaConf lets through
            raise UsageError(f"'{path}' is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(content, DictConfig) or not path.read_text(encoding="utf-8").strip():
            raise UsageError(f"'{path}' holds no keys. Wanted lines such as 'key: value', or no such file.")


def _opening_comment(path: Path) -> str:
    words = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            words.append(line.removeprefix("#").strip())
    return " ".join(words)


def overview(groups: Sequence[Group]) -> str:
    """All groups on a terminal: what each decides, and its choices; an asterisk marks the default."""
    width = max((len(group.name) for group in groups), default=0)
    lines = []
    for group in groups:
        choices = (f"{choice}{'*' if choice == group.default else ''}" for choice in group.choices)
        lines += [f"  {group.name:<{width}}  {group.decides}", f"  {'':<{width}}    {' '.join(choices)}"]
    return "\n".join(lines)


def markdown_table(groups: Sequence[Group]) -> str:
    """README's table; the default is bold."""
    rows = ["| group | choices | what it decides |", "|---|---|---|"]
    for group in groups:
        choices = (f"**`{name}`**" if name == group.default else f"`{name}`" for name in group.choices)
        rows.append(f"| `{group.name}` | {' '.join(choices)} | {group.decides} |")
    return "\n".join(rows)
