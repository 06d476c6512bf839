"""Images → feature maps → fused features → embedding; the class adversary; regularisers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Whoever tries to import the package meanwhile is told that it is not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# timm's helpers for logging take W&B along where it is installed, which a network has no use for.
with _without("wandb"):
    import timm  # noqa: F401
