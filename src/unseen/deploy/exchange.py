"""A model as one file that runs without this package: ONNX, or a program of `torch.export`.

The file takes images as they are after the resize and crop of evaluation, and normalises them itself. The
resize is left to the caller: torchvision resizes uint8 in whole numbers, ONNX in floating point, and the two
differ by one grey level here and there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unseen.deploy.model import Model
from unseen.files import replacing
from unseen.nn.embedder import Embedder

TOLERANCE = 1e-4
"""Of an embedding's value, where embeddings have length 1; else a share of the longest one."""
INPUT, OUTPUT, BATCH = "images", "embeddings", "batch"
FACTS_FILE = "unseen.json"
"""Within a program of `torch.export`: what an ONNX file has as metadata."""

Run = Callable[[Tensor], Tensor]
"""Prepared images `(B, 3, S, S)` uint8 → embeddings `(B, d)` float32."""


class Exchanged(NamedTuple):
    """A file that was written.

    Args:
        path: of the file.
        difference: the largest one between its embeddings and the model's, over the images of the check.
    """

    path: Path
    difference: float


def to_onnx(model: Model, path: str | Path, images: Tensor) -> Exchanged:
    """Write an ONNX file: input `images (batch, 3, S, S)` uint8, output `embeddings (batch, d)` float32.

    Its metadata say of which bundle it is and how many pixels and dimensions it has.

    Args:
        model: is not changed.
        path: is replaced when the file was seen to embed as the model does.
        images: of the check, prepared, `(N, 3, S, S)` uint8: run alone, and all at once.

    Raises:
        ValueError: ONNX is not installed, the network cannot be exported, or the file embeds otherwise than
            the model; nothing is left behind then.
    """
    runtime = _onnxruntime()
    network = _Images(model)
    with replacing(Path(path).expanduser()) as temporary:
        program = _program(network, images)
        with _refusing("ONNX"):
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: BATCH},),
            )
            exported.model.metadata_props.update(_facts(model))
            exported.save(temporary)
        session = runtime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = _difference(
            lambda batch: torch.from_numpy(session.run([OUTPUT], {INPUT: batch.numpy()})[0]), network, images
        )
        _check(difference, path)
    return Exchanged(Path(path).expanduser(), difference)


def to_torch_export(model: Model, path: str | Path, images: Tensor) -> Exchanged:
    """Write a program of `torch.export` (.pt2), which torch alone loads: `torch.export.load(path).module()`.

    Arguments, input, output and what is raised are those of `to_onnx`; nothing has to be installed.
    """
    network = _Images(model)
    with replacing(Path(path).expanduser()) as temporary:
        torch.export.save(_program(network, images), temporary, extra_files={FACTS_FILE: _json(model)})
        difference = _difference(torch.export.load(temporary).module(), network, images)
        _check(difference, path)
    return Exchanged(Path(path).expanduser(), difference)


def prepared(model: Model, pixels: Any) -> Tensor:
    """What an exported file takes.

    Args:
        model: says how images are prepared.
        pixels: `(H, W, 3)` uint8 arrays of any size, at least one.

    Returns:
        `(N, 3, S, S)` uint8.
    """
    return torch.stack([model.prepare(one) for one in pixels])


def noise(model: Model, count: int) -> Tensor:
    """Random images `(count, 3, S, S)` uint8, always the same: for a check without real ones."""
    side = model.embedder.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


class _Images(nn.Module):
    """Images to embeddings and nothing else, on the CPU; the model may be on another device."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embedder: Embedder = copy.deepcopy(model.embedder).cpu().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.embedder(images).embedding.float()
        return embedding


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    # Two images, as the exporter takes a batch of one for a constant.
    example = images[:1].repeat(2, 1, 1, 1)
    with _refusing("torch.export"):
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))


@contextmanager
def _refusing(exporter: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # exporters have dozens of their own, without a common base
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{exporter} cannot export this network ({type(error).__name__}: {reason[0] if reason else ''}). "
            "Its bundle works all the same: unseen.load(folder).embed([…])."
        ) from error


@torch.inference_mode()
def _difference(found: Run, network: nn.Module, images: Tensor) -> float:
    """The largest one, of a batch of one and of all; NaN where an embedding is not finite."""
    pairs = [(found(batch), network(batch)) for batch in (images[:1], images)]
    longest = max(float(wanted.norm(dim=1).max()) for _, wanted in pairs)
    off = torch.stack([(one - wanted).abs().max() for one, wanted in pairs]).max()
    return float(off) / longest if longest else float("nan")


def _check(difference: float, path: str | Path) -> None:
    if not difference <= TOLERANCE:
        raise ValueError(
            f"'{path}' would embed images otherwise than the model does (by up to {difference:.2g}; "
            f"{TOLERANCE:g} is allowed), so it was not written. Take the bundle itself, or another format or "
            "version of the exporter."
        )


def _facts(model: Model) -> dict[str, str]:
    return {
        "unseen": version("unseen-dml"),
        "bundle": str(model.facts.get("bundle", "")),
        "image_size": str(model.embedder.backbone.image_size),
        "dimensions": str(model.size),
    }


def _json(model: Model) -> str:
    return json.dumps(_facts(model))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ValueError(
            f"format=onnx: {error.name} is not installed. Run `pip install 'unseen-dml[onnx]'`, or choose "
            "format=torch_export, which needs torch alone."
        ) from error
    return onnxruntime
