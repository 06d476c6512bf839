"""A file in 8 bits is what it says it is, or is not written."""

import json

import numpy as np
import pytest
import torch

import unseen
from unseen.data.transforms import resized_center
from unseen.deploy.model import Model
from unseen.deploy.quantization import Labelled, to_int8_onnx

pytestmark = pytest.mark.slow
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    embedder = unseen.embedder("resnet10t", weights="none", image_size=32, fusion="attention", size=16)
    torch.nn.init.normal_(embedder.fusion.weights)
    embedder.readout = None
    return Model(embedder.requires_grad_(False).eval(), resized_center(32, 1.0), {"bundle": "abc"})


@pytest.fixture(scope="module")
def pictures():
    """Six classes of twelve images, each a colour with noise, of two sizes."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (6, 1, 1, 3))
    return [
        (colours[row % 6] + generator.integers(-40, 40, (40, 48 + row % 2, 3))).astype(np.uint8)
        for row in range(72)
    ]


def written(model, path, pictures, **options):
    judged = Labelled(pictures[36:], np.arange(36) % 6, "36 images of 6 colours")
    chosen = {"preprocessing": False, "most_lost": 1.0, "calibration": pictures[:36], "judged": judged}
    return to_int8_onnx(model, path, pictures[:2], **(chosen | options))


@pytest.mark.parametrize("preprocessing", [False, True])
def test_it_finds_what_its_metadata_say(model, pictures, tmp_path, preprocessing):
    found = written(model, tmp_path / "model.onnx", pictures, preprocessing=preprocessing)
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    vectors = []
    for pixels in pictures[36:]:
        given = pixels if preprocessing else model.prepare(pixels).numpy()
        vectors.append(session.run(None, {"images": given[None]})[0][0])
    wanted = model.embed(pictures[36:]).numpy()
    assert found.cosine == pytest.approx((np.stack(vectors) * wanted).sum(axis=1).min(), abs=1e-5)
    assert 0.9 < found.cosine < 0.99999
    for embeddings, share in zip((wanted, np.stack(vectors)), found.metrics["recall_at_1"], strict=True):
        similarities = embeddings @ embeddings.T
        np.fill_diagonal(similarities, -2)
        assert share == pytest.approx(np.mean(similarities.argmax(axis=1) % 6 == np.arange(36) % 6))
    program = onnx.load(found.path)
    facts = {entry.key: entry.value for entry in program.metadata_props}
    assert facts["bundle"] == "abc"
    assert json.loads(facts["int8"])["float_and_int8"]["recall_at_1"] == list(found.metrics["recall_at_1"])
    makers = {name: node.op_type for node in program.graph.node for name in node.output}
    fed_by = {
        kind: {makers.get(node.input[0]) for node in program.graph.node if node.op_type == kind}
        for kind in ("Conv", "Softmax")
    }
    assert fed_by["Conv"] == {"DequantizeLinear"}
    assert "DequantizeLinear" not in fed_by["Softmax"]
    weights = {tuple(one.dims) for one in program.graph.initializer if one.data_type == onnx.TensorProto.INT8}
    assert (512, 512, 3, 3) in weights
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_loses_too_much_is_not_written(model, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"would lose .* of Recall@1 on 36 images of 6 colours"):
        written(model, tmp_path / "model.onnx", pictures, most_lost=-1.0)
    assert list(tmp_path.iterdir()) == []
