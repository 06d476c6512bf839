"""Any timm network as an extractor of feature maps: taps at any module, and the final map, always NCHW."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from unseen.nn.taps import CHOICES, FINAL, Block, block_names, module_name, stages
from unseen.nn.weights import load_weights


class FeatureMaps(NamedTuple):
    """What a backbone gives for `B` images.

    Args:
        taps: `(B, C_l, H_l, W_l)` for each tap.
        final: `(B, C, H, W)`, what the plain network would pool.
    """

    taps: list[Tensor]
    final: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> FeatureMaps:
        """Those of the taps in order, then the final map."""
        return cls(list(maps[:-1]), maps[-1])


class Backbone(nn.Module):
    """A timm network without its classifier.

    Images are normalised here, on their device, with the network's own mean and standard deviation.

    Args:
        model: timm's name of the network.
        image_size: side of the square images, pixels.
        taps: `late` (the last block at stride 16 and the two at stride 32 that precede the final map, or what
            comes nearest to it), `stages` (the last block at each of the last three strides),
            `late_and_final` or `stages_and_final` (with the final map itself); or a list of positions in
            timm's `feature_info` (negative ones count from its end), names of modules, and `final`.
        weights: `none`, `timm` (pretrained, downloaded) or the path of a `.safetensors` or `.pth` file.
        mean: of each channel, for images in [0, 1]; None takes the network's own.
        std: likewise.
        options: further arguments of `timm.create_model`, such as `pad_type` or `drop_path_rate`.
        frozen: always in evaluation mode and without gradients.

    Attributes:
        tap_names: names of the tapped modules.
        tap_channels: `C_l` of each tap.
        tap_strides: pixels of the image for one position of the map, of each tap.
        final_channels: `C`.
        image_size: pixels, as given.

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
        taps: str | Sequence[int | str],
        weights: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        options: Mapping[str, Any] | None,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self._built_of = (model, sorted((options or {}).items()), timm.__version__)
        self.network: Any = _create(model, image_size, dict(options or {}))
        load_weights(self.network, weights)
        own = resolve_model_data_config(self.network)
        for name, values in (("mean", mean or own["mean"]), ("std", std or own["std"])):
            self.register_buffer(name, torch.tensor(list(values)).view(1, 3, 1, 1), persistent=False)
        self._caught: dict[str, Tensor] = {}
        ends = [str(stage["module"]) for stage in stages(self.network)]
        final, shapes = self._look([*block_names(self.network), *ends, *self._named(taps)], image_size)
        strides = _strides(self.network, shapes, image_size)
        if isinstance(taps, str):
            self.tap_names = CHOICES[taps](_blocks(self.network, shapes, strides, final))
        else:
            self.tap_names = self._named(taps)
            self._check_given(shapes)
        shapes[FINAL], strides[FINAL] = final, round(image_size / final[1])
        self.tap_channels = [shapes[name][0] for name in self.tap_names]
        self.tap_strides = [strides[name] for name in self.tap_names]
        self.final_channels = final[0]
        self._listen(name for name in self.tap_names if name != FINAL)
        self.frozen = False
        if frozen:
            self.freeze()

    @property
    def map_names(self) -> list[str]:
        """Of the taps in order, then of the final map."""
        return [*self.tap_names, FINAL]

    def freeze(self) -> None:
        """For good: evaluation mode and no gradients, whatever happens around it."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that an image's maps depend on: architecture, taps, scaling, weights."""
        parts = (*self._built_of, self.image_size, self.tap_names, str(self.network))
        digest = hashlib.sha256(repr(parts).encode())
        for name, value in [("mean", self.mean), ("std", self.std), *self.state_dict().items()]:
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def forward(self, images: Tensor) -> FeatureMaps:
        """`(B, 3, H, W)`, uint8 in [0, 255] or float in [0, 1] → feature maps."""
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        elif images.dtype == torch.float64:  # of NumPy
            images = images.to(self.mean.dtype)
        final = self.network.forward_features((images - self.mean) / self.std)
        maps = {name: _as_map(self.network, output) for name, output in self._caught.items()}
        self._caught.clear()
        maps[FINAL] = _as_map(self.network, final)
        return FeatureMaps([maps[name] for name in self.tap_names], maps[FINAL])

    def _named(self, taps: str | Sequence[int | str]) -> list[str]:
        if isinstance(taps, str):
            if taps not in CHOICES:
                raise ValueError(f"taps={taps}: choices are {', '.join(CHOICES)}, or a list of modules.")
            return []
        return [module_name(self.network, tap) for tap in taps]

    def _check_given(self, shapes: Mapping[str, torch.Size]) -> None:
        missing = [name for name in self.tap_names if name not in shapes and name != FINAL]
        if missing:
            raise ValueError(
                f"taps: module '{missing[0]}' gives no feature map on the way to the final map, or one that "
                "what follows it changes in place. Name another module, such as the block that it is in."
            )

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
        looked = [name for name in dict.fromkeys(names) if name != FINAL]
        handles, versions = self._listen(looked), _Versions()
        handles += [
            self.network.get_submodule(name).register_forward_hook(versions.of(name)) for name in looked
        ]
        self.network.eval()
        try:
            final = _as_map(self.network, self.network.forward_features(torch.zeros(1, 3, size, size)))
        except RuntimeError as error:
            raise ValueError(f"image_size={size}: too small for this network ({error}).") from error
        self.network.train()
        for handle in handles:
            handle.remove()
        shapes = {}
        for name, output in self._caught.items():
            if versions.have_changed(name, output):
                continue  # what follows it has written into it
            with suppress(ValueError):  # what gives no map is no tap
                shapes[name] = _as_map(self.network, output).shape[1:]
        self._caught.clear()
        return final.shape[1:], shapes


class _Versions:
    """How often outputs had been written into when their modules gave them."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, name: str) -> Callable[..., None]:
        """A hook that remembers it of a module."""

        def remember(module: nn.Module, inputs: Any, output: Any) -> None:
            self._given[name] = getattr(output, "_version", 0)

        return remember

    def have_changed(self, name: str, output: Any) -> bool:
        """Whether the output was written into since."""
        return bool(getattr(output, "_version", 0) != self._given[name])


def _create(model: str, image_size: int, options: dict[str, Any]) -> nn.Module:
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: wanted a number of pixels of at least 1.")
    if not timm.is_model(model.split(".")[0]):
        close = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f"model='{model}': timm has no such network. Close to it: {', '.join(close)}.")
    if "checkpoint_path" in options:  # timm runs pickles in it, and a record may come from anybody
        raise ValueError(
            "backbone.options.checkpoint_path: name the file by backbone.weights, which runs no code."
        )
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


def _strides(network: nn.Module, shapes: Mapping[str, torch.Size], image_size: int) -> dict[str, int]:
    """Pixels for one position of each map: timm's, of the stage that a module is part of or leads to.

    Shapes alone would not do: at small sizes maps of different strides have the same one.
    """
    position = {name: index for index, (name, _) in enumerate(network.named_modules())}
    ends = []
    for stage in stages(network):
        inside = [index for name, index in position.items() if f"{name}.".startswith(f"{stage['module']}.")]
        ends.append((max(inside, default=-1), int(stage["reduction"])))
    measured = {name: round(image_size / shape[1]) for name, shape in shapes.items()}
    return {
        name: next((stride for end, stride in ends if position[name] <= end), measured[name])
        for name in shapes
    }


def _blocks(
    network: nn.Module, shapes: Mapping[str, torch.Size], strides: Mapping[str, int], final: torch.Size
) -> list[Block]:
    """The blocks that lie on the way to the final map.

    Raises:
        ValueError: none is found.
    """
    known, ends = set(block_names(network)), {str(stage["module"]) for stage in stages(network)}
    # A network without blocks (VGG) has timm's stages.
    names = [name for name in shapes if name in known] or [name for name in shapes if name in ends]
    if not names:
        raise ValueError(
            "taps: no blocks are known of this network. Give a list of modules: backbone.taps=[…]."
        )
    last = max(strides[name] for name in names)
    return [
        Block(name, min(strides[name], last), is_final=name == names[-1] and shapes[name] == final)
        for name in names
    ]


def _as_map(network: nn.Module, features: Any) -> Tensor:
    """Whatever layout a family has → `(B, C, H, W)`.

    Raises:
        ValueError: the output is no map.
    """
    if not isinstance(features, Tensor):
        raise ValueError(f"A tap gives a {type(features).__name__}, which is no map of features.")
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features
    if features.ndim != 3:
        raise ValueError(f"A tap gives shape {tuple(features.shape)}, which is no map of features.")
    tokens = features[:, getattr(network, "num_prefix_tokens", 0) :]
    return tokens.transpose(1, 2).unflatten(2, _grid(network, tokens.shape[1]))


def _grid(network: nn.Module, count: int) -> tuple[int, int]:
    """Height and width of a map of so many tokens: as the network says, else a square, as images are.

    Raises:
        ValueError: the tokens are no map.
    """
    height, width = getattr(getattr(network, "patch_embed", None), "grid_size", None) or (0, 0)
    if height * width == count:
        return int(height), int(width)
    # Networks in stages (LeViT, PVT) have smaller maps than their first one.
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"A tap gives {count} tokens, which are no square map of features.")
    return side, side
