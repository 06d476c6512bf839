"""Any timm network as an extractor of feature maps: taps at any module, and the final map, always NCHW."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from unseen.nn.weights import load_weights

DEFAULT_TAPS = 3


class FeatureMaps(NamedTuple):
    """What a backbone gives for `B` images.

    Args:
        taps: `(B, C_l, H_l, W_l)` for each tap.
        final: `(B, C, H, W)`, what the plain network would pool.
    """

    taps: list[Tensor]
    final: Tensor


class Backbone(nn.Module):
    """A timm network without its classifier.

    Images are normalised here, on their device, with the network's own mean and standard deviation.

    Args:
        model: timm's name of the network.
        image_size: side of the square images, pixels.
        taps: positions in timm's `feature_info` (negative ones count from its end) or names of modules;
            None taps the last three stages before the final map.
        weights: `none`, `timm` (pretrained, downloaded) or the path of a `.safetensors` or `.pth` file.
        mean: of each channel, for images in [0, 1]; None takes the network's own.
        std: likewise.
        options: further arguments of `timm.create_model`, such as `pad_type` or `drop_path_rate`.

    Attributes:
        tap_names: names of the tapped modules.
        tap_channels: `C_l` of each tap.
        tap_strides: pixels of the image for one position of the map, of each tap.
        final_channels: `C`.

    Raises:
        ValueError: unknown network, option or tap, an impossible size, or weights that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        *,
        image_size: int,
        taps: Sequence[int | str] | None,
        weights: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.network: Any = _create(model, image_size, dict(options or {}))
        load_weights(self.network, weights)
        own = resolve_model_data_config(self.network)
        for name, values in (("mean", mean or own["mean"]), ("std", std or own["std"])):
            self.register_buffer(name, torch.tensor(list(values)).view(1, 3, 1, 1), persistent=False)
        strides = {stage["module"]: int(stage["reduction"]) for stage in _stages(self.network)}
        stages = list(strides)
        named = None if taps is None else [_module_name(self.network, stages, tap) for tap in taps]
        self._caught: dict[str, Tensor] = {}
        final, shapes = self._look(stages if named is None else named, image_size)
        if named is None:
            # The last stage often is the final map itself, or that map before its norm.
            before = stages[:-1] if stages and shapes[stages[-1]] == final else stages
            named = before[-DEFAULT_TAPS:]
        self.tap_names = named
        self.tap_channels = [shapes[name][0] for name in named]
        self.tap_strides = [strides.get(name, round(image_size / shapes[name][1])) for name in named]
        self.final_channels = final[0]
        self._listen(named)

    def forward(self, images: Tensor) -> FeatureMaps:
        """`(B, 3, H, W)`, uint8 in [0, 255] or float in [0, 1] → feature maps."""
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        final = self.network.forward_features((images - self.mean) / self.std)
        taps = [_as_map(self.network, self._caught.pop(name)) for name in self.tap_names]
        return FeatureMaps(taps, _as_map(self.network, final))

    def _listen(self, names: Iterable[str]) -> list[Any]:
        return [
            self.network.get_submodule(name).register_forward_hook(partial(self._catch, name))
            for name in names
        ]

    def _catch(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._caught[name] = output

    @torch.no_grad()
    def _look(self, names: Sequence[str], size: int) -> tuple[torch.Size, dict[str, torch.Size]]:
        """Shapes `(C, H, W)` of the final map and of some modules' outputs, seen on one blank image.

        timm's `feature_info` has channels and strides of its stages only; a tap may be any module.
        """
        handles = self._listen(names)
        self.network.eval()
        try:
            final = _as_map(self.network, self.network.forward_features(torch.zeros(1, 3, size, size)))
        except RuntimeError as error:
            raise ValueError(f"image_size={size}: too small for this network ({error}).") from error
        self.network.train()
        for handle in handles:
            handle.remove()
        missing = [name for name in names if not isinstance(self._caught.get(name), Tensor)]
        if missing:
            raise ValueError(f"taps: module '{missing[0]}' gives no feature map on the way to the final map.")
        shapes = {name: _as_map(self.network, output).shape[1:] for name, output in self._caught.items()}
        self._caught.clear()
        return final.shape[1:], shapes


def _create(model: str, image_size: int, options: dict[str, Any]) -> nn.Module:
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: wanted a number of pixels of at least 1.")
    if not timm.is_model(model.split(".")[0]):
        close = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f"model='{model}': timm has no such network. Close to it: {', '.join(close)}.")
    defaults = timm.get_pretrained_cfg(model, allow_unregistered=True)
    if defaults is not None and defaults.fixed_input_size:
        options = {"img_size": image_size} | options
    try:
        network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"'{model}' cannot be built with {options}: {error}") from error
    if not hasattr(network, "forward_features"):
        raise ValueError(f"model='{model}' has no feature maps (no forward_features in timm).")
    return network


def _stages(network: nn.Module) -> list[dict[str, Any]]:
    """timm's `feature_info`: a list for some families, an object that holds one for others."""
    info = getattr(network, "feature_info", [])
    return list(getattr(info, "info", info))


def _module_name(network: nn.Module, stages: Sequence[str], tap: int | str) -> str:
    if isinstance(tap, int):
        if not -len(stages) <= tap < len(stages):
            named = ", ".join(f"{index}: {name}" for index, name in enumerate(stages))
            raise ValueError(f"taps: there is no stage {tap}. Stages of this backbone: {named}.")
        return stages[tap]
    modules = [name for name, _ in network.named_modules() if name]
    if tap not in modules:
        close = difflib.get_close_matches(tap, modules, n=3)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise ValueError(f"taps: this backbone has no module '{tap}'. Its stages: {', '.join(stages)}.{hint}")
    return tap


def _as_map(network: nn.Module, features: Tensor) -> Tensor:
    """Whatever layout a family has → `(B, C, H, W)`.

    Raises:
        ValueError: the output is no map.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features
    if features.ndim != 3:
        raise ValueError(f"A tap gives shape {tuple(features.shape)}, which is no map of features.")
    tokens = features[:, getattr(network, "num_prefix_tokens", 0) :]
    height, width = network.patch_embed.grid_size  # type: ignore[union-attr, misc]
    return tokens.transpose(1, 2).unflatten(2, (int(height), int(width)))
