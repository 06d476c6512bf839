"""Hydra's `instantiate` for the configuration of a stranger: parts come from packages that are trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, ListConfig, OmegaConf

from unseen.config.values import UsageError
from unseen.targets import UntrustedError, is_within, located

TARGET = "_target_"
VARIABLE = "UNSEEN_TRUSTED"
"""Environment variable that names a user's own packages, divided by commas. Not a key of the configuration,
as what must be guarded against could then allow itself."""
TRUSTED = (
    "unseen.data.samplers", "unseen.data.sources", "unseen.data.split", "unseen.data.transforms",
    "unseen.deploy.exchange", "unseen.deploy.index", "unseen.deploy.quantization", "unseen.deploy.runners",
    "unseen.losses",
    "unseen.nn",
    "unseen.report.wandb_report", "unseen.sweep.launchers", "unseen.tracking.dashboards", "unseen.training",
    "lightning.Trainer", "lightning.pytorch.trainer", "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers", "lightning.pytorch.plugins", "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "optuna.pruners", "optuna.samplers",
    "pytorch_metric_learning.distances", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners",
    "pytorch_metric_learning.reducers", "pytorch_metric_learning.regularizers",
    "timm.optim", "torch.nn", "torch.optim", "torchvision.transforms",
)  # fmt: skip
"""Where parts of a run may be defined. Not whole packages: `torch.load` would run what is in a file."""


def trusted() -> tuple[str, ...]:
    """`TRUSTED`, and the packages that the user trusts beside them."""
    own = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return (*TRUSTED, *(name for name in own if name))


def instantiate(config: Any, **arguments: Any) -> Any:
    """As `hydra.utils.instantiate`, of trusted packages alone.

    Raises:
        UsageError: a target lies or leads elsewhere.
        hydra.errors.InstantiationException: a constructor refused; its cause says why.
    """
    key = config._get_full_key(None) if isinstance(config, DictConfig | ListConfig) else ""
    content = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    for place, target in _targets(content, key):
        try:
            located(target, trusted())
        except UntrustedError as error:
            raise _untrusted(place, target) from error
        except ImportError:
            continue  # Hydra says which key names it
    return hydra.utils.instantiate(config, **arguments)


def check_targets(content: Any, key: str = "") -> None:
    """Refuse names outside trusted packages, before anything is imported.

    Args:
        content: plain data; an interpolation is not known yet and passes, as `instantiate` looks again.
        key: dotted, of the content.

    Raises:
        UsageError: naming the key, the value and the remedy.
    """
    for place, target in _targets(content, key):
        if not target.startswith("${") and not is_within(target, trusted()):
            raise _untrusted(place, target)


def check_logging(content: Mapping[str, Any], key: str) -> None:
    """Refuse Python's own doors to any callable in a configuration of logging (`class`, `()`).

    Args:
        content: as `logging.config.dictConfig` takes it.
        key: dotted, of the content.

    Raises:
        UsageError: a class is not the standard library's, or a factory is named.
    """
    for place, name, value in _leaves(content, key):
        if name == "()" or (name == "class" and not str(value).startswith("logging.")):
            raise UsageError(
                f"{place}={value}: handlers and formatters of Python's logging alone may be named."
            )


def _targets(content: Any, key: str) -> Iterator[tuple[str, str]]:
    for place, name, value in _leaves(content, key):
        if name == TARGET and isinstance(value, str):
            yield place, value


def _leaves(content: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    """Dotted key, last name and value of all that is no container."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content or ())
    for name, value in items:
        place = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping | list):
            yield from _leaves(value, place)
        else:
            yield place, str(name), value


def _untrusted(key: str, target: str) -> UsageError:
    package = target.partition(".")[0]
    return UsageError(
        f"{key}={target}: parts are made of documented packages alone, as a configuration may come from "
        f"anyone. If you trust the package: {VARIABLE}={package} in the environment."
    )
