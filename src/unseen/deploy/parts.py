"""Parts of a network from their description as plain data, without Hydra, and of this package alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from unseen.targets import UntrustedError, located

TARGET, PARTIAL = "_target_", "_partial_"
ALLOWED = ("unseen.nn", "unseen.data.transforms", "torchvision.transforms.v2")
"""Where a bundle's description may point: one from a stranger must not be able to call anything."""


def made(description: Any, allowed: tuple[str, ...] = ALLOWED) -> Any:
    """What a description makes: `{"_target_": "unseen.nn.fusion.PooledTaps", "_partial_": true, …}`.

    Args:
        description: as Hydra writes it; parts may hold parts.
        allowed: packages and modules in which a target must be defined.

    Raises:
        ValueError: a target is not among what is allowed, or does not exist.
    """
    if isinstance(description, list):
        return [made(item, allowed) for item in description]
    if not isinstance(description, Mapping):
        return description
    arguments = {
        key: made(value, allowed) for key, value in description.items() if key not in (TARGET, PARTIAL)
    }
    if TARGET not in description:
        return arguments
    target = _found(str(description[TARGET]), allowed)
    return functools.partial(target, **arguments) if description.get(PARTIAL) else target(**arguments)


def check(description: Any) -> None:
    """Refuse what `made` would refuse, without making it.

    Raises:
        ValueError: as `made`.
    """
    for value in description.values() if isinstance(description, Mapping) else ():
        check(value)
    for value in description if isinstance(description, list) else ():
        check(value)
    if isinstance(description, Mapping) and TARGET in description:
        _found(str(description[TARGET]), ALLOWED)


def _found(target: str, allowed: tuple[str, ...]) -> Any:
    try:
        return located(target, allowed)
    except UntrustedError as error:
        raise ValueError(
            f"A bundle holds parts of unseen and torchvision alone, not '{target}'. Save the weights of a "
            "network with parts of your own by torch, and rebuild it in your code."
        ) from error
    except ImportError as error:
        raise ValueError(f"There is no '{target}' in this version of unseen or torchvision.") from error
