"""Freezes a job: overrides → the whole config, resolved, in the job's own folder, which its key names.

What a file of the configuration says later changes nothing for a job that waits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from unseen.config.command_line import building, config_folder, in_a_line, resolved_in, searched
from unseen.config.identity import Splits, key_of, plain
from unseen.config.values import UsageError
from unseen.files import replacing
from unseen.sweep.job import FROZEN, Job
from unseen.tracking.record import flattened
from unseen.tracking.redaction import redacted


class Frozen(NamedTuple):
    """A job and all that it will do.

    Args:
        job: its name, key and folder.
        config: resolved; needs nothing of Hydra's any more.
        validates: whether its split holds training classes out.
    """

    job: Job
    config: DictConfig
    validates: bool

    def save(self) -> None:
        """Write the config into the job's folder, in which a process can run it (`unseen.apps.job`)."""
        with replacing(self.job.folder / FROZEN) as temporary:
            OmegaConf.save(self.config, temporary)


class Freezer:
    """Composes jobs; nothing is written, and each data set is read once.

    Args:
        config_name: primary config.
        config_dir: a user's own groups (`--config-dir`).
    """

    def __init__(self, config_name: str = "train", config_dir: str | None = None) -> None:
        self.config_name = config_name
        self._own = searched(config_dir)
        self._splits = Splits()

    def freeze(self, overrides: Sequence[str], root: Path, name: str | None = None) -> Frozen:
        """One job.

        Args:
            overrides: as typed, `key=value`, each of one value (see `check_overrides`).
            root: of all jobs; the job's folder is `<data>_<loss>_<ablation>_seed<seed>_<8 digits of key>`.
            name: for people; by default the folder's.

        Raises:
            UsageError: the config cannot be composed or resolved, or its data cannot be read or split.
        """
        composed = self._compose(overrides)
        # Where it lies is not known yet, and is not part of what it is.
        config = resolved_in(composed, root)
        _check_secrets(config)
        with building():
            split = self._splits.of(config)
            key = key_of(plain(config), split.fingerprint)
        folder = Path(root).resolve() / f"{_readable(config)}_{key[:8]}"
        return Frozen(Job(name or folder.name, key, folder), resolved_in(composed, folder), split.validates)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            try:
                return compose(self.config_name, overrides=[*self._own, *overrides], return_hydra_config=True)
            except HydraException as error:
                raise UsageError(f"{' '.join(overrides)}: {in_a_line(error)}") from error


def _check_secrets(config: DictConfig) -> None:
    """A job's settings are written down whole, for another process to read."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    for key, value in flattened({str(key): value for key, value in content.items()}):
        if key != "overrides" and redacted({key: value}) != {key: value}:
            raise UsageError(
                f"{key} holds a password or a token, and the jobs of a sweep are written down. Give it by an "
                "environment variable that the library reads, such as WANDB_API_KEY or "
                "MLFLOW_TRACKING_PASSWORD."
            )


def thaw(folder: Path) -> DictConfig:
    """The config of a frozen job.

    Raises:
        UsageError: there is none in this folder.
    """
    path = Path(folder) / FROZEN
    if not path.is_file():
        raise UsageError(f"{folder}: there is no frozen job ({FROZEN}) in this folder. A sweep writes it.")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _readable(config: DictConfig) -> str:
    parts = (config.choices.get(group) for group in ("data", "loss", "ablation"))
    name = "_".join([*(str(part) for part in parts if part is not None), f"seed{config.seed}"])
    return re.sub(r"[^\w.+-]+", "-", name)
