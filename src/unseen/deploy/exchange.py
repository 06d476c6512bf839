"""A model as one file that runs without this package: ONNX, or a program of `torch.export`.

The file takes images as they are after the resize and crop of evaluation, and normalises them itself. An ONNX
file may resize and crop, too: that differs from torchvision's by one grey level here and there.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unseen.data.images import Pixels
from unseen.deploy.model import Model
from unseen.deploy.preprocessing import Preparation, preparation_of, prepend
from unseen.files import replacing
from unseen.nn.embedder import Embedder

TOLERANCE = 1e-4
"""Of an embedding's value, where embeddings have length 1; else a share of the longest one."""
PREPROCESSING_TOLERANCE = 1e-3
"""Of 1 − cosine, where the file resizes images itself."""
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
        cosine: the lowest one between the two.
        metrics: where it does not embed as the model does: name → (of the model, of the file).
    """

    path: Path
    difference: float
    cosine: float
    metrics: Mapping[str, tuple[float, float]] | None = None


def to_onnx(model: Model, path: str | Path, images: Sequence[Pixels], *, preprocessing: bool) -> Exchanged:
    """Write an ONNX file: input `images (batch, 3, S, S)` uint8, output `embeddings (batch, d)` float32.

    Its metadata say of which bundle it is and how many pixels and dimensions it has.

    Args:
        model: is not changed.
        path: is replaced when the file was seen to embed as the model does.
        images: of the check, `(H, W, 3)` uint8 of any size, at least one: run alone, and all at once.
        preprocessing: resize and crop are inside: the input is `images (batch, H, W, 3)` uint8 of any size.

    Raises:
        ValueError: ONNX is not installed, the network or the preparation cannot be exported, or the file
            embeds otherwise than the model; nothing is left behind then.
    """
    runtime = _onnxruntime()
    preparation = preparation_of(model.preparation) if preprocessing else None
    network = _Images(model)
    with replacing(Path(path).expanduser()) as temporary:
        ready = prepared(model, images)
        program = _program(network, ready)
        with _refusing("ONNX"):
            exported = _exported(program)
            exported.model.metadata_props.update(_facts(model))
            exported.save(temporary)
        if preparation is not None:
            with_preprocessing(temporary, preparation)
        session = runtime.InferenceSession(temporary, providers=["CPUExecutionProvider"])

        def run(batch: Tensor) -> Tensor:
            return torch.from_numpy(session.run([OUTPUT], {INPUT: batch.numpy()})[0])

        if preparation is None:
            compared = _compared(run, network, _batches(ready))
            _check(compared.difference, TOLERANCE, path)
        else:
            # Images of one size alone make a batch: each by itself, and the first one twice.
            given = [torch.from_numpy(pixels)[None] for pixels in [*images, images[0]]]
            given[-1] = given[-1].repeat(2, 1, 1, 1)
            wanted = [*ready[:, None], ready[:1].repeat(2, 1, 1, 1)]
            compared = _compared(run, network, zip(given, wanted, strict=True))
            _check(1 - compared.cosine, PREPROCESSING_TOLERANCE, path)
    return Exchanged(Path(path).expanduser(), *compared)


def to_torch_export(model: Model, path: str | Path, images: Sequence[Pixels]) -> Exchanged:
    """Write a program of `torch.export` (.pt2), which torch alone loads: `torch.export.load(path).module()`.

    Arguments, input, output and what is raised are those of `to_onnx`; nothing has to be installed.
    """
    network = _Images(model)
    with replacing(Path(path).expanduser()) as temporary:
        ready = prepared(model, images)
        torch.export.save(_program(network, ready), temporary, extra_files={FACTS_FILE: _json(model)})
        compared = _compared(torch.export.load(temporary).module(), network, _batches(ready))
        _check(compared.difference, TOLERANCE, path)
    return Exchanged(Path(path).expanduser(), *compared)


def prepared(model: Model, pixels: Any) -> Tensor:
    """What an exported file without preprocessing takes.

    Args:
        model: says how images are prepared.
        pixels: `(H, W, 3)` uint8 arrays of any size, at least one.

    Returns:
        `(N, 3, S, S)` uint8.
    """
    return torch.stack([model.prepare(one) for one in pixels])


def noise(model: Model, count: int) -> list[Pixels]:
    """Random images `(1.5 S, 2 S, 3)` uint8, always the same: for a check without real ones."""
    side = model.embedder.backbone.image_size
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 256, (count, 3 * side // 2, 2 * side, 3), dtype=np.uint8))


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


def _exported(program: Any) -> Any:
    """The program in ONNX.

    Some versions of Python fail to build a syntax tree when garbage is collected in the middle of it ("AST
    constructor recursion depth mismatch", CPython's issue 106905); the exporter builds hundreds, and the next
    attempt succeeds.
    """
    export = functools.partial(
        torch.onnx.export,
        program,
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: BATCH},),
    )
    try:
        return export()
    except SystemError:
        return export()


def with_preprocessing(path: Path, preparation: Preparation) -> None:
    """Let an ONNX file begin with the preparation of images; it is replaced."""
    import onnx

    program = onnx.load(path)
    prepend(program, preparation, INPUT, BATCH)
    onnx.save(program, path)


def _batches(images: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """One alone, and all at once."""
    return [(batch, batch) for batch in (images[:1], images)]


class _Compared(NamedTuple):
    difference: float
    cosine: float


@torch.inference_mode()
def _compared(found: Run, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> _Compared:
    """What a file makes of one thing, and the network of the other; NaN where an embedding is not finite."""
    pairs = [(found(given), network(ready)) for given, ready in batches]
    one, wanted = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    longest = float(wanted.norm(dim=1).max())
    off = float((one - wanted).abs().max()) / longest if longest else float("nan")
    return _Compared(off, float(nn.functional.cosine_similarity(one.double(), wanted.double()).min()))


def _check(difference: float, tolerance: float, path: str | Path) -> None:
    if not difference <= tolerance:
        raise ValueError(
            f"'{path}' would embed images otherwise than the model does (by up to {difference:.2g}; "
            f"{tolerance:g} is allowed), so it was not written. Take the bundle itself, or another format or "
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
