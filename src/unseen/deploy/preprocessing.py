"""Resize and crop as the first nodes of an ONNX graph, so that it takes images of any size.

ONNX's antialiased `Resize` (opset 18) filters as Pillow and torchvision do; on uint8 ONNX Runtime computes in
whole numbers as they do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torchvision.transforms import v2  # type: ignore[import-untyped]

PREPARED = "prepared"
OPSET = 18
"""The first with an antialiased resize."""


class Preparation(NamedTuple):
    """What `resized_center` does.

    Args:
        shorter: pixels of the shorter side after the resize.
        size: of the square that is cut from the centre.
    """

    shorter: int
    size: int


def preparation_of(module: nn.Module) -> Preparation:
    """What a model's preparation does.

    Raises:
        ValueError: it is something else than a resize of the shorter side and a centre crop.
    """
    steps = list(module.transforms) if isinstance(module, v2.Compose) else []
    if len(steps) == 2 and isinstance(steps[0], v2.Resize) and isinstance(steps[1], v2.CenterCrop):
        resize, crop = steps
        [shorter], (height, width) = resize.size or [0], crop.size
        # A member of InterpolationMode, or its value: versions of torchvision differ.
        filtering = getattr(resize.interpolation, "value", resize.interpolation)
        if filtering == "bilinear" and resize.antialias and height == width:
            return Preparation(int(shorter), int(height))
    raise ValueError(
        "format.preprocessing=true: this bundle prepares images otherwise than by an antialiased bilinear "
        "resize of the shorter side and a centre crop, which alone can be written into the file. Leave it "
        "out, and prepare images by model.preparation."
    )


def prepend(program: Any, preparation: Preparation, name: str, batch: str) -> None:
    """Let a graph begin with the preparation.

    Args:
        program: `onnx.ModelProto` with the input `name`, `(batch, 3, S, S)` uint8; afterwards it takes
            `(batch, height, width, 3)` uint8.
        preparation: of the images.
        name: of the input, before and afterwards.
        batch: of its first dimension.

    Raises:
        ValueError: the graph is of an opset without an antialiased resize.
    """
    import onnx

    opset = next(one.version for one in program.opset_import if one.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise ValueError(f"ONNX opset {opset} has no antialiased resize; {OPSET} has.")
    graph = program.graph
    for node in graph.node:
        node.input[:] = [PREPARED if one == name else one for one in node.input]
    network = list(graph.node)
    del graph.node[:], graph.input[:]
    kind = onnx.TensorProto.UINT8
    graph.input.append(
        onnx.helper.make_tensor_value_info(name, kind, [batch, f"{name}_height", f"{name}_width", 3])
    )
    graph.node.extend([*_nodes(onnx, preparation, name), *network])


def _nodes(onnx: Any, preparation: Preparation, name: str) -> list[Any]:
    """From `(B, H, W, 3)` to `(B, 3, S, S)`, in the arithmetic of torchvision's `Resize` and `CenterCrop`."""
    make = onnx.helper.make_node

    def whole(label: str, values: list[int]) -> Any:
        tensor = onnx.helper.make_tensor(f"{PREPARED}_{label}", onnx.TensorProto.INT64, [len(values)], values)
        return make("Constant", [], [f"{PREPARED}_{label}"], value=tensor)

    def named(*labels: str) -> list[str]:
        return [f"{PREPARED}_{label}" for label in labels]

    constants = {
        "shorter": [preparation.shorter],
        "size": [preparation.size] * 2,
        "two": [2],
        "sides": [2, 3],
    }
    nodes = [whole(label, values) for label, values in constants.items()]
    nodes += [
        make("Transpose", [name], named("channels_first"), perm=[0, 3, 1, 2]),
        make("Shape", named("channels_first"), named("others"), start=0, end=2),
        make("Shape", named("channels_first"), named("given"), start=2, end=4),
        make("ReduceMin", named("given"), named("least"), keepdims=1),
        # As torchvision: shorter · side / least, rounded down.
        make("Mul", named("given", "shorter"), named("product")),
        make("Div", named("product", "least"), named("resized_size")),
        make("Concat", named("others", "resized_size"), named("resized_shape"), axis=0),
        make(
            "Resize",
            [*named("channels_first"), "", "", *named("resized_shape")],
            named("resized"),
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        make("Sub", named("resized_size", "size"), named("margin")),
        *_half_to_even(make, named),
        make("Add", named("start", "size"), named("end")),
        make("Slice", named("resized", "start", "end", "sides"), [PREPARED]),
    ]
    return nodes


def _half_to_even(make: Any, named: Any) -> list[Any]:
    """Half of the margin, ties to the even number, as Python's `round` in torchvision's crop."""
    return [
        make("Div", named("margin", "two"), named("down")),
        # One more where the margin is odd and its half, rounded down, is odd too.
        make("Mod", named("margin", "two"), named("margin_odd")),
        make("Mod", named("down", "two"), named("down_odd")),
        make("Mul", named("margin_odd", "down_odd"), named("more")),
        make("Add", named("down", "more"), named("start")),
    ]
