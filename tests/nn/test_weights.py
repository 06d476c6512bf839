"""Weights from a file are checked key by key; a hub that is not there is named, with the remedy."""

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from unseen.nn.backbone import Backbone


def made(weights, model="mobilenetv3_small_100", **changes):
    settings = {"image_size": 64, "taps": "late", "mean": None, "std": None, "options": None, "frozen": False}
    return Backbone(model, weights=str(weights), **(settings | changes))


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return timm.create_model("mobilenetv3_small_100", num_classes=13).state_dict()


def save(path, content):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("w.safetensors", lambda state: state),
        ("w.pth", lambda state: state),
        ("w.pth", lambda state: {"state_dict": state}),
        ("w.pth", lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}),
    ],
)
def test_every_form_of_file_is_loaded_and_its_classifier_left_out(tmp_path, state, name, wrap):
    network = made(save(tmp_path / name, wrap(state))).network
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("conv_stem.weight"), "1 missing: conv_stem.weight"),
        (lambda state: state.update({"extra.weight": torch.ones(1)}), "1 unexpected: extra.weight"),
        (
            lambda state: state.update({"conv_stem.weight": torch.ones(2)}),
            "1 of another shape: conv_stem.weight",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(tmp_path, state, change, words):
    state = dict(state)
    change(state)
    with pytest.raises(ValueError, match=words):
        made(save(tmp_path / "w.safetensors", state))


def test_a_missing_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no such file. Choices: none, timm"):
        made(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="could not be read as weights"):
        made(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="could not be read as weights"):
        made(tmp_path / "text.safetensors")


def test_without_a_connection_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"weights=timm.*'mobilenetv3_small_100'.*backbone\.weights=/path/to"
    ):
        made("timm")


def test_what_the_hub_gives_is_loaded(monkeypatch, state):
    asked = []

    def hub(model_id, *arguments, **keywords):
        asked.append(model_id)
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    network = made("timm").network
    assert asked
    assert torch.equal(network.conv_stem.weight, state["conv_stem.weight"])


@pytest.mark.skipif(
    "UNSEEN_TEST_DATA" not in os.environ, reason="UNSEEN_TEST_DATA names no folder of real data"
)
def test_the_real_mobilenet_loads():
    path = Path(os.environ["UNSEEN_TEST_DATA"]) / "mobilenetv2_100_imagenet.safetensors"
    backbone = made(path, "mobilenetv2_100", options={"pad_type": "same"}, mean=[0.5] * 3, std=[0.5] * 3)
    assert backbone.final_channels == 1280
    running = backbone.network.bn1.running_var
    assert running.min() > 0
    assert running.std() > 0


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_file_fits_another_image_size(tmp_path, model):
    saved = timm.create_model(model)
    torch.save(saved.state_dict(), tmp_path / "saved.pth")
    backbone = made(tmp_path / "saved.pth", model, image_size=128)
    own, wanted = backbone.network.state_dict(), saved.state_dict()
    adapted = [key for key in own if own[key].shape != wanted[key].shape]
    assert adapted
    assert all("pos" in key for key in adapted)
    assert all(torch.equal(own[key], wanted[key]) for key in own.keys() - set(adapted))


def test_an_image_too_small_for_a_network_is_refused_in_words():
    with pytest.raises(ValueError, match="image_size=48: too small"):
        made("none", "inception_v3", image_size=48)
