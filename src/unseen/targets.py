"""Names of Python objects in configuration: only what lies in packages that are trusted is looked up.

A configuration may come from a stranger, and `_target_: os.system` would run a command. A prefix alone is no
guard: `unseen.files.os.system` begins with a trusted name, so what is found must itself be defined in one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class UntrustedError(ValueError):
    """A name that leads outside the packages that are trusted."""


def is_within(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of these packages, modules or objects, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def located(target: str, packages: Iterable[str]) -> Any:
    """The class or function of a dotted name.

    Args:
        target: such as `torch.optim.AdamW`.
        packages: dotted names in which it must lie, and in which what it leads to must be defined.

    Raises:
        UntrustedError: it lies or leads elsewhere, or is private.
        ImportError: there is no such object.
    """
    packages = tuple(packages)
    if not is_within(target, packages) or any(part.startswith("_") for part in target.split(".")):
        raise UntrustedError(f"'{target}' is not in a trusted package")
    found = _found(target)
    if isinstance(found, ModuleType) or not callable(found):
        raise ImportError(f"'{target}' is no class or function")
    if not is_within(str(getattr(found, "__module__", None)), packages):
        raise UntrustedError(
            f"'{target}' leads to '{getattr(found, '__module__', None)}', which is not trusted"
        )
    return found


def _found(target: str) -> Any:
    """As Hydra looks it up, so that what is checked is what is called."""
    first, *rest = target.split(".")
    found: Any = importlib.import_module(first)
    name = first
    for part in rest:
        name = f"{name}.{part}"
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(name)
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ImportError(f"there is no '{name}'") from error
    return found
