"""An exported file embeds as the model does, in batches of any size, or is not written."""

import builtins
import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from unseen.data.transforms import resized_center
from unseen.deploy import exchange
from unseen.deploy.exchange import noise, prepared, to_onnx, to_torch_export
from unseen.deploy.model import Model
from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.fusion import AttentionFusion, Fused, tanh_score

pytestmark = pytest.mark.slow
SIDE = 32


def model_of(name="resnet10t", fusion=None, normalize=True):
    torch.manual_seed(0)
    backbone = Backbone(
        name, image_size=SIDE, taps="late", weights="none", mean=None, std=None, options=None, frozen=False
    )
    fusion = fusion or partial(AttentionFusion, score=tanh_score, per_tap=False, jitter=0.1)
    embedder = Embedder(
        backbone,
        fusion,
        size=16,
        normalize=normalize,
        layer_norm=False,
        readout="features",
        whitening=1.0,
        frozen_batch_norm=False,
    )
    if hasattr(embedder.fusion, "weights"):
        # Where it starts, attention is a mean: an exporter could lose it unseen.
        nn.init.normal_(embedder.fusion.weights, std=0.5)
    return Model(embedder.eval(), resized_center(SIDE, 1.0), {"bundle": "abc"})


def by_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def by_torch(path, images):
    return torch.export.load(path).module()(images)


ONNX = partial(to_onnx, preprocessing=False)
FORMATS = [(ONNX, "model.onnx", by_onnx), (to_torch_export, "model.pt2", by_torch)]


@pytest.mark.parametrize(("write", "file", "run"), FORMATS, ids=["onnx", "torch_export"])
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_it_embeds_pictures_of_any_size_as_the_model_does(tmp_path, write, file, run, name):
    model = model_of(name)
    written = write(model, tmp_path / file, noise(model, 3))
    generator = np.random.default_rng(1)
    pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (33, 32))] * 4
    for count in (1, 2, 7):
        found = run(written.path, prepared(model, pictures[:count]))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, model.embed(pictures[:count]), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(count))
    assert 0 <= written.difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_file_says_of_which_bundle_it_is(tmp_path):
    import onnx

    model = model_of()
    ONNX(model, tmp_path / "model.onnx", noise(model, 2))
    read = onnx.load(tmp_path / "model.onnx")
    facts = {entry.key: entry.value for entry in read.metadata_props}
    assert (facts["bundle"], facts["image_size"], facts["dimensions"]) == ("abc", "32", "16")
    shape = read.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in shape] == ["batch", 3, SIDE, SIDE]
    to_torch_export(model, tmp_path / "model.pt2", noise(model, 2))
    within = {"unseen.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=within)
    assert json.loads(within["unseen.json"])["bundle"] == "abc"


def test_embeddings_of_free_length_are_compared_by_their_length(tmp_path):
    model = model_of(normalize=False)
    with torch.no_grad():
        model.embedder.readout.directions.mul_(1e4)
    assert to_torch_export(model, tmp_path / "model.pt2", noise(model, 3)).difference <= exchange.TOLERANCE


@pytest.mark.parametrize(("write", "file", "run"), FORMATS, ids=["onnx", "torch_export"])
def test_what_embeds_otherwise_is_not_written_and_leaves_what_was_there(
    tmp_path, monkeypatch, write, file, run
):
    (tmp_path / file).write_text("earlier")
    monkeypatch.setattr(exchange, "TOLERANCE", -1.0)
    model = model_of()
    with pytest.raises(ValueError, match=rf"{file}' would embed images otherwise"):
        write(model, tmp_path / file, noise(model, 2))
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == "earlier"


class DependsOnValues(nn.Module):
    """What no exporter can write down: which way it goes depends on the image."""

    def __init__(self, tap_channels, final_channels):
        super().__init__()
        self.out_features = final_channels

    def forward(self, maps):
        pooled = maps.final.mean((2, 3))
        return Fused(pooled if pooled.sum() > 0 else -pooled, [])


@pytest.mark.parametrize(("write", "file", "run"), FORMATS, ids=["onnx", "torch_export"])
def test_a_network_that_cannot_be_exported_is_refused_in_words(tmp_path, write, file, run):
    model = model_of(fusion=DependsOnValues)
    with pytest.raises(ValueError, match=r"torch\.export cannot export this network .*Its bundle works"):
        write(model, tmp_path / file, noise(model, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch, missing):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name == missing:
            raise ImportError(f"No module named '{name}'", name=name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    model = model_of()
    with pytest.raises(ValueError, match=rf"{missing} is not installed.*pip install 'unseen-dml\[onnx\]'"):
        ONNX(model, tmp_path / "model.onnx", noise(model, 2))


def test_the_model_is_left_as_it_was(tmp_path):
    model = model_of()
    before = {name: value.clone() for name, value in model.embedder.state_dict().items()}
    parameters = [value.requires_grad for value in model.embedder.parameters()]
    to_torch_export(model, tmp_path / "model.pt2", noise(model, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.embedder.state_dict().items())
    assert [value.requires_grad for value in model.embedder.parameters()] == parameters


@pytest.mark.parametrize("resize", [1.0, 256 / 224])
def test_with_preprocessing_it_takes_images_of_any_size(tmp_path, resize):
    model = model_of()
    model = Model(model.embedder, resized_center(SIDE, resize), model.facts)
    written = to_onnx(model, tmp_path / "model.onnx", noise(model, 3), preprocessing=True)
    assert written.cosine > 0.9999
    generator = np.random.default_rng(1)
    for height, width in ((40, 60), (33, 32), (90, 41), (20, 25), (SIDE, SIDE)):
        pictures = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found = by_onnx(written.path, torch.from_numpy(pictures))
        cosines = (found * model.embed(pictures)).sum(dim=1)
        assert float(cosines.min()) > 0.9999, (height, width)


def test_what_the_graph_cannot_prepare_alike_is_refused(tmp_path, monkeypatch):
    model = model_of()
    other = Model(model.embedder, nn.Identity(), {})
    with pytest.raises(ValueError, match=r"preprocessing=true: this bundle prepares images otherwise"):
        to_onnx(other, tmp_path / "model.onnx", noise(model, 2), preprocessing=True)
    monkeypatch.setattr(exchange, "PREPROCESSING_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="would embed images otherwise"):
        to_onnx(model, tmp_path / "model.onnx", noise(model, 2), preprocessing=True)
    assert list(tmp_path.iterdir()) == []
