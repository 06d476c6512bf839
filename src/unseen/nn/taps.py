"""Which layers to tap: the same depth in every family, found by timm's own data and one blank image.

The published taps (`inception_4d`, `4e`, `5a` of BN-Inception) are the last block at stride 16 and the blocks
at stride 32 just before the last one, which is the final map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

FINAL = "final"
"""Names the final map itself, as a tap."""
COUNT = 3
"""Taps of a default choice, as published."""


class Block(NamedTuple):
    """A block of a network, in the order in which they run.

    Args:
        name: of its module.
        stride: pixels of the image for one position of its map.
        is_final: whether its output is the final map, or that map before its norm.
    """

    name: str
    stride: int
    is_final: bool


def late_blocks(blocks: Sequence[Block]) -> list[str]:
    """The last block at the next-to-last stride and the two at the last stride that precede the final map.

    Where the last stride has fewer, the final block is one of them; where there is one stride only
    (transformers), the last three blocks before the final one; in the shallowest networks blocks of earlier
    strides make up the number.
    """
    last = blocks[-1].stride
    before = [block.name for block in blocks if block.stride == last and not block.is_final]
    earlier = [block.name for block in blocks if block.stride < last]
    if not earlier:
        return before[-COUNT:]
    deepest = before[-(COUNT - 1) :]
    if len(deepest) < COUNT - 1:
        deepest += [block.name for block in blocks if block.is_final]
    return [*earlier[-(COUNT - len(deepest)) :], *deepest]


def last_of_stages(blocks: Sequence[Block]) -> list[str]:
    """The last block at each of the last three strides; of a single stride, the last three blocks."""
    strides = list(dict.fromkeys(block.stride for block in blocks))
    if len(strides) == 1:
        return [block.name for block in blocks[-COUNT:]]
    return [[block.name for block in blocks if block.stride == stride][-1] for stride in strides[-COUNT:]]


def _with_final(choose: Callable[[Sequence[Block]], list[str]]) -> Callable[[Sequence[Block]], list[str]]:
    def chosen(blocks: Sequence[Block]) -> list[str]:
        final = {block.name for block in blocks if block.is_final}
        return [*(name for name in choose(blocks) if name not in final), FINAL]

    return chosen


CHOICES: dict[str, Callable[[Sequence[Block]], list[str]]] = {
    "late": late_blocks,
    "late_and_final": _with_final(late_blocks),
    "stages": last_of_stages,
    "stages_and_final": _with_final(last_of_stages),
}
"""What `backbone.taps` may be instead of a list."""


def block_names(network: nn.Module) -> list[str]:
    """Modules that are whole blocks (residual, inverted, Inception, transformer …), not parts of one."""
    return [name for name, _ in _blocks(network, "", is_container=True)]


def _blocks(module: nn.Module, path: str, is_container: bool) -> Iterator[tuple[str, nn.Module]]:
    if not is_container:
        if any(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules()):
            yield path, module
        return
    # A stage of ConvNeXt or Swin is a downsampling and its `blocks`; only they are blocks.
    inner = getattr(module, "blocks", None)
    children = {"blocks": inner} if isinstance(inner, nn.Module) else dict(module.named_children())
    for name, child in children.items():
        if len(list(child.children())) > 0:
            yield from _blocks(child, f"{path}.{name}" if path else name, _is_container(child))


def _is_container(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return True
    return isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList)


def stages(network: nn.Module) -> list[dict[str, Any]]:
    """timm's `feature_info`: a list for some families, an object that holds one for others."""
    info = getattr(network, "feature_info", [])
    modules = dict(network.named_modules())
    # Those of MViTv2 are of modules that it does not have.
    return [stage for stage in getattr(info, "info", info) if str(stage["module"]) in modules]


def module_name(network: nn.Module, tap: int | str) -> str:
    """The module that a tap means: a position in timm's `feature_info`, a module's name, or `final`.

    Raises:
        ValueError: there is no such stage or module.
    """
    known = [str(stage["module"]) for stage in stages(network)]
    if isinstance(tap, int):
        if not -len(known) <= tap < len(known):
            named = ", ".join(f"{index}: {name}" for index, name in enumerate(known))
            raise ValueError(f"taps: there is no stage {tap}. Stages of this backbone: {named}.")
        return known[tap]
    modules = [name for name, _ in network.named_modules() if name]
    if tap != FINAL and tap not in modules:
        close = difflib.get_close_matches(tap, modules, n=3)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise ValueError(
            f"taps: this backbone has no module '{tap}'. Its stages: {', '.join(known)}. "
            f"'{FINAL}' is the final map.{hint}"
        )
    return tap
