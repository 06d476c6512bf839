"""What of a pretrained backbone learns: names of parameters, and how its layers follow each other."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from timm.models import group_parameters
from torch import nn
from torch.func import functional_call

from unseen.nn.backbone import Backbone, FeatureMaps
from unseen.nn.modes import evaluating


def everything(backbone: nn.Module) -> frozenset[str]:
    """Names of all parameters."""
    return frozenset(name for name, _ in backbone.named_parameters())


def nothing(backbone: nn.Module) -> frozenset[str]:
    """No name: the backbone stays as it was pretrained."""
    return frozenset()


def norms(backbone: nn.Module) -> frozenset[str]:
    """Names of the scales and shifts of normalisation layers (Frankle et al. 2021, "Training BatchNorm and
    only BatchNorm", arXiv:2003.00152).

    Raises:
        ValueError: there is none.
    """
    found = frozenset(
        f"{place}.{name}"
        for place, module in backbone.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    )
    if not found:
        raise ValueError("This backbone has no normalisation layers with weights. Choose trainable=last.")
    return found


def last(backbone: Backbone, *, count: int) -> frozenset[str]:
    """Names in the last layers; a layer is what timm takes for one, in most networks a block.

    Args:
        backbone: of a network of timm that says how its layers follow each other.
        count: of layers.

    Raises:
        ValueError: the network has fewer layers, or does not say how they follow each other.
    """
    found = layers(backbone)
    if not 1 <= count <= len(found):
        raise ValueError(f"count={count}: this backbone has {len(found)} layers. Give a number of them.")
    return frozenset(name for names in found[-count:] for name in names)


def named(backbone: nn.Module, *, patterns: Sequence[str]) -> frozenset[str]:
    """Names that fit a pattern, without the leading `network.`, such as `blocks.5.*` or `*.bias`.

    Raises:
        ValueError: a pattern fits none.
    """
    known = {name.removeprefix("network."): name for name in everything(backbone)}
    fitting = {pattern: fnmatch.filter(known, pattern) for pattern in patterns}
    if idle := [pattern for pattern, found in fitting.items() if not found]:
        raise ValueError(
            f"patterns: no parameter of this backbone fits '{idle[0]}'. There are {len(known)}, such as "
            f"{', '.join(sorted(known)[:3])}."
        )
    return frozenset(known[name] for found in fitting.values() for name in found)


def layers(backbone: Backbone) -> list[list[str]]:
    """Names of parameters, layer by layer from the image on, as timm groups them for layer-wise rates.

    Those alone that maps depend on: in some networks the last layer of timm is one that images pass on the
    way to the classifier, which no backbone here has.

    Raises:
        ValueError: the network does not say.
    """
    network = backbone.network
    if not hasattr(network, "group_matcher"):
        raise ValueError(
            f"timm does not say how the layers of {type(network).__name__} follow each other "
            "(group_matcher). Choose optimizer.layer_decay=1, and parameters by names (trainable=named)."
        )
    found = group_parameters(network, network.group_matcher(coarse=False))
    used = _used(backbone)
    named_here = ([f"network.{name}" for name in found[place]] for place in sorted(found))
    return [held for names in named_here if (held := [name for name in names if name in used])]


def _used(backbone: Backbone) -> frozenset[str]:
    """Names of the parameters that the maps of an image depend on."""
    blank = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    given = {name: value.detach().requires_grad_() for name, value in backbone.named_parameters()}
    with evaluating(backbone), torch.enable_grad():
        maps: FeatureMaps = functional_call(backbone, given, blank.to(backbone.mean.device))
        whole = torch.stack([one.sum() for one in (*maps.taps, maps.final)]).sum()
        gradients = torch.autograd.grad(whole, list(given.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(given, gradients, strict=True) if gradient is not None)
