"""Low-rank additions to a pretrained backbone, which alone learn and are merged into it after training."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from unseen.nn.backbone import Backbone


def lora(
    backbone: Backbone, *, rank: int, alpha: float, dropout: float, modules: Sequence[str]
) -> frozenset[str]:
    """`W + (α / r) B A`, with `A (r, in)` random and `B (out, r)` zero at first (Hu et al. 2022,
    arXiv:2106.09685, section 4.1), beside linear layers and convolutions; all else of the backbone rests.

    Left out are convolutions of groups, modules that do not have more channels than the rank, and taps.

    Args:
        backbone: is changed in place.
        rank: r.
        alpha: α.
        dropout: share of the inputs of A that is zeroed in training.
        modules: patterns of the names of modules, as timm has them: `*.attn.qkv`, `blocks.5.*`.

    Returns:
        Names of the parameters of A and B.

    Raises:
        ValueError: a number is out of range, or a pattern fits no such module.
        ImportError: peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: wanted a whole number of at least 1.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: wanted a share in [0, 1).")
    peft = _peft()
    known = [name for name, module in backbone.network.named_modules() if _can_have(module, rank)]
    known = [name for name in known if name not in backbone.tap_names]
    fitting = {pattern: fnmatch.filter(known, pattern) for pattern in modules}
    if idle := [pattern for pattern, found in fitting.items() if not found]:
        raise ValueError(
            f"modules: no linear layer or convolution with more than rank={rank} channels fits '{idle[0]}'. "
            f"There are {len(known)}{': ' if known else ''}{', '.join(known[:5])}."
        )
    chosen = sorted({name for found in fitting.values() for name in found})
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    peft.inject_adapter_in_model(config, backbone.network)
    return frozenset(name for name, _ in backbone.named_parameters() if ".lora_" in name)


def merge(backbone: nn.Module) -> None:
    """Put each addition into the weights that it was added to; a backbone without them is left alone."""
    for name, module in _adapted(backbone):
        module.merge()
        backbone.set_submodule(name, module.get_base_layer())


def has_additions(backbone: nn.Module) -> bool:
    """Whether there is any."""
    return bool(_adapted(backbone))


def _adapted(backbone: nn.Module) -> list[tuple[str, Any]]:
    """peft's layers, found by what they have: without peft there are none."""
    return [(name, module) for name, module in backbone.named_modules() if hasattr(module, "get_base_layer")]


def _can_have(module: nn.Module, rank: int) -> bool:
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features) > rank
    # Padding and weights of other kinds are not the plain convolution's, which peft adds to.
    plain = type(module) is nn.Conv2d or (type(module) is Conv2dSame and module.kernel_size == (1, 1))
    if not plain:
        return False
    assert isinstance(module, nn.Conv2d)
    return module.groups == 1 and min(module.in_channels, module.out_channels) > rank


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'unseen-dml[lora]'") from error
    return peft
