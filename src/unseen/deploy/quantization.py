"""An ONNX file that computes in 8 bits: ONNX Runtime quantises it, images of the run judge it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.data.images import Images, Pixels
from unseen.deploy.exchange import INPUT, OUTPUT, Exchanged, prepared, to_onnx, with_preprocessing
from unseen.deploy.model import Model
from unseen.deploy.preprocessing import preparation_of
from unseen.files import replacing
from unseen.retrieval import evaluate

OPERATIONS = ("Conv", "MatMul", "Gemm", "Add", "Relu", "Clip")
"""What is computed in 8 bits: nearly all of the work; Relu and Clip, so that the range of what they follow is
that which they leave. Softmax, tanh and the length of an embedding stay float: they cost little."""
BATCH = 16
"""Images that are calibrated on at a time: every intermediate result of theirs is held."""
METRICS = ("recall_at_1", "map_at_r")


class Labelled(NamedTuple):
    """Images that an embedding is judged by, searched among each other.

    Args:
        images: `(H, W, 3)` uint8 of any size.
        labels: `(N,)`.
        what: they are, in words.
    """

    images: Images
    labels: NDArray[np.int64]
    what: str


def to_int8_onnx(
    model: Model,
    path: str | Path,
    images: Sequence[Pixels],
    *,
    preprocessing: bool,
    most_lost: float,
    calibration: Images,
    judged: Labelled,
) -> Exchanged:
    """Write an ONNX file as `to_onnx` does, with weights (a scale each channel) and activations in 8 bits.

    Its metadata hold, beside those of `to_onnx`, `int8`: what it is worth and what the model is.

    Args:
        model: is not changed.
        path: is replaced when the file was seen to find as much as it must.
        images: of the check of the float file that it is made from.
        preprocessing: resize and crop are inside.
        most_lost: of Recall@1, as a share of all queries.
        calibration: images that training saw, from which the ranges of activations are taken.
        judged: images that neither training nor calibration saw.

    Raises:
        ValueError: as `to_onnx`, or more is lost; nothing is left behind then.
    """
    preparation = preparation_of(model.preparation) if preprocessing else None
    target = Path(path).expanduser()
    with replacing(target) as temporary, tempfile.TemporaryDirectory() as scratch:
        float_file = to_onnx(model, Path(scratch) / "float.onnx", images, preprocessing=False).path
        _quantize(float_file, temporary, prepared(model, calibration))
        if preparation is not None:
            with_preprocessing(temporary, preparation)
        found = _embedded(temporary, model, judged.images, preprocessing)
        wanted = torch.cat(list(model.embed_batches(len(judged.images), judged.images.__getitem__)))
        before, after = (evaluate(one, judged.labels).metrics for one in (wanted, found))
        lost = before["recall_at_1"] - after["recall_at_1"]
        if not lost <= most_lost:
            raise ValueError(
                f"'{target}' would lose {lost:.3f} of Recall@1 on {judged.what} (from "
                f"{before['recall_at_1']:.3f}; format.most_lost={most_lost:g} is allowed), so it was not "
                "written. Calibrate on more images (format.calibration), allow more, or take format=onnx."
            )
        metrics = {name: (before[name], after[name]) for name in METRICS}
        _note(temporary, {"judged_by": judged.what, "float_and_int8": metrics})
    difference = float((found - wanted).abs().max() / wanted.norm(dim=1).max())
    cosine = float(torch.nn.functional.cosine_similarity(found, wanted).min())
    return Exchanged(target, difference, cosine, metrics)


def _quantize(source: Path, target: Path, images: Tensor) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inferred = source.with_name("inferred.onnx")
    quant_pre_process(source, inferred, skip_symbolic_shape=True)
    quantize_static(
        inferred,
        target,
        _Batches(images),
        op_types_to_quantize=list(OPERATIONS),
        # One scale for all channels costs a depthwise network most of its Recall@1.
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class _Batches:
    """Prepared images `(N, 3, S, S)`, as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(images.split(BATCH))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _embedded(path: Path, model: Model, images: Images, preprocessing: bool) -> Tensor:
    """`(N, d)` float32 by a file, of one image after the other, as their sizes may differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for index in range(len(images)):
        pixels = images[index]
        given = pixels if preprocessing else model.prepare(pixels).numpy()
        found.append(torch.from_numpy(session.run([OUTPUT], {INPUT: given[None]})[0]))
    return torch.cat(found)


def _note(path: Path, content: dict[str, Any]) -> None:
    import onnx

    program = onnx.load(path)
    program.metadata_props.add(key="int8", value=json.dumps(content))
    onnx.save(program, path)
