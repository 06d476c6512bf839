"""Where a backbone's weights come from: nowhere, timm's hub, or a local file whose keys are checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import load_pretrained
from torch import Tensor, nn


def load_weights(network: nn.Module, weights: str) -> None:
    """Load weights into a timm network without classifier.

    Args:
        network: built by timm with `num_classes=0`.
        weights: `none`, `timm`, or the path of a `.safetensors` or `.pth` file.

    Raises:
        ValueError: no such file, no connection to the hub, or keys or shapes that do not fit.
    """
    if weights == "none":
        return
    if weights == "timm":
        _load_from_hub(network)
        return
    _load_from_file(network, Path(weights).expanduser())


def _load_from_hub(network: nn.Module) -> None:
    name = network.pretrained_cfg.get("architecture")  # type: ignore[union-attr, operator]
    try:
        load_pretrained(network, num_classes=0, filter_fn=_family_filter(network))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ValueError(
            f"weights=timm: the pretrained weights of '{name}' could not be downloaded "
            f"({type(error).__name__}). Without a connection give a local file, "
            "backbone.weights=/path/to/weights.safetensors, or start from random: backbone.weights=none."
        ) from error


def _load_from_file(network: nn.Module, path: Path) -> None:
    state, own = _read(path), network.state_dict()
    adapt = _family_filter(network)
    if adapt is not None and any(state[key].shape != own[key].shape for key in state.keys() & own.keys()):
        state = adapt(state, network)
    state = _without_classifier(network, state)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    # Counters that some exporters leave out; they play no part in what the network computes.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": sorted(shapes)}
    if any(wrong.values()):
        words = "; ".join(f"{len(keys)} {kind}: {_few(keys)}" for kind, keys in wrong.items() if keys)
        raise ValueError(
            f"weights='{path}' does not fit '{network.pretrained_cfg['architecture']}' ({words}). "  # type: ignore[index]
            "Name the network that the file was saved from: backbone.model=…"
        )
    network.load_state_dict(state, strict=False)


def _family_filter(network: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Any]] | None:
    """timm's own step between a file and a network of the family: position tables for another image size."""
    return getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights='{path}': no such file. Choices: none, timm, or the path of a file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not PyTorch's own words, which advise to run what is in the file.
        raise ValueError(
            f"weights='{path}' could not be read as weights ({type(error).__name__}). Wanted a .safetensors "
            "file, or a .pth file that holds nothing but tensors."
        ) from error
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, Mapping) and key in content else content
    return {key.removeprefix("module."): value for key, value in content.items()}


def _without_classifier(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    classifiers = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return {key: value for key, value in state.items() if not key.startswith(classifiers)}


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
