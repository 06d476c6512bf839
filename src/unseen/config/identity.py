"""What names a run before it is built: its plain config, its split, and the file of its initial weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unseen.config.targets import instantiate
from unseen.config.values import NO_SOURCE
from unseen.data.split import Split
from unseen.files import file_hash
from unseen.tracking.record import job_key
from unseen.tracking.redaction import redacted


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved, as plain data without secrets: what a run may write down of its settings."""
    content = redacted(OmegaConf.to_container(config, resolve=True))
    return {str(key): value for key, value in content.items()}


def weights_hash(content: Mapping[str, Any]) -> str | None:
    """SHA-256 of the file of initial weights that a config names; none where it names no file."""
    weights = Path(str(content["backbone"]["weights"])).expanduser()
    if not weights.is_file():
        return None
    about = weights.stat()
    return _file_hash(weights, about.st_size, about.st_mtime_ns)


@functools.lru_cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    """Once for all jobs of a sweep, as long as the file stays as it is."""
    return file_hash(path)


def key_of(content: Mapping[str, Any], split: str) -> str:
    """The job key of a run of this version.

    Args:
        content: the config, resolved, as plain data.
        split: fingerprint of the split.
    """
    return job_key(content, split, weights_hash(content), version("unseen-dml"))


class SplitFacts(NamedTuple):
    """What is known of a split without keeping it.

    Args:
        fingerprint: see `unseen.data.split.Split`.
        validates: whether it holds training classes out.
    """

    fingerprint: str
    validates: bool


class Splits:
    """What jobs need to know of their splits: each data set is read once, however many jobs take it."""

    def __init__(self) -> None:
        self._known: dict[str, SplitFacts] = {}

    def of(self, config: DictConfig) -> SplitFacts:
        """Of the split that a run of this config has; no network is built.

        Raises:
            hydra.errors.InstantiationException: the source or the protocol refused; its cause says why.
            ValueError: data and protocol do not fit.
            OSError: a file or folder is missing.
        """
        content = plain(config)
        name = json.dumps([content["data"], content["protocol"]], sort_keys=True, default=str)
        if name not in self._known:
            split = _split(config)
            self._known[name] = SplitFacts(split.fingerprint, len(split.validation) > 0)
        return self._known[name]


def _split(config: DictConfig) -> Split:
    if config.data.source is None:
        raise ValueError(NO_SOURCE)
    if config.data.on_error == "skip":
        # What is left out is known when every image was decoded once.
        from unseen.config.build import build_data

        return build_data(config).split
    manifest = instantiate(config.data.source)
    if config.data.exclude is not None:
        from unseen.data.module import listed_paths, without

        manifest = without(manifest, listed_paths(config.data.exclude, manifest))
    split: Split = instantiate(config.protocol)(manifest)
    return split
