"""What of a backbone learns, by hand for tiny networks."""

import pytest
import torch
from torch import nn

from unseen.nn.backbone import Backbone
from unseen.nn.trainable import everything, last, layers, named, norms, nothing


def backbone(model="resnet10t", **options):
    return Backbone(
        model, image_size=32, taps="late", weights="none", mean=None, std=None, options=options, frozen=False
    )


def test_everything_and_nothing():
    made = backbone()
    assert everything(made) == set(dict(made.named_parameters()))
    assert nothing(made) == frozenset()


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_norms_are_all_that_has_the_class_of_a_norm(model):
    made = backbone(model, **({"img_size": 32} if model.startswith("vit") else {}))
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    wanted = {
        id(weight) for part in made.modules() if isinstance(part, kinds) for weight in part.parameters()
    }
    weights = dict(made.named_parameters())
    assert wanted
    # ConvNeXt's global response norm counts as one.
    assert {id(weights[name]) for name in norms(made)} >= wanted
    others = norms(made) - {name for name, weight in weights.items() if id(weight) in wanted}
    assert all(".grn." in name for name in others)


def test_a_network_without_norms_says_so():
    with pytest.raises(ValueError, match="no normalisation layers"):
        norms(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_the_last_layers_of_a_residual_network_are_its_last_blocks():
    made = backbone()
    assert last(made, count=1) == {name for name in everything(made) if ".layer4.0." in name}
    assert last(made, count=2) == {name for name in everything(made) if "layer4" in name or "layer3" in name}
    assert last(made, count=len(layers(made))) == everything(made)
    with pytest.raises(ValueError, match="count=9: this backbone has 5 layers"):
        last(made, count=9)


def test_the_last_layer_of_a_transformer_has_the_final_norm():
    made = backbone("vit_tiny_patch16_224", img_size=32)
    wanted = {name for name in everything(made) if ".blocks.11." in name or name.startswith("network.norm.")}
    assert last(made, count=1) == wanted


@pytest.mark.parametrize("model", ["convnext_atto", "mobilenetv3_small_050", "resnet10t"])
def test_every_layer_is_one_that_images_pass_through(model):
    made = backbone(model)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    next(part for part in made.modules() if not list(part.children())).eval()  # as of batch norm that rests
    modes = [part.training for part in made.modules()]
    names = last(made, count=1)
    assert [part.training for part in made.modules()] == modes
    assert made.training
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    maps = made(torch.rand(2, 3, 32, 32))
    sum(one.square().sum() for one in (*maps.taps, maps.final)).backward()
    weights = dict(made.named_parameters())
    assert names
    for name in (name for names in layers(made) for name in names):
        assert weights[name].grad is not None, name


def test_a_network_whose_layers_are_unknown_says_so():
    made = backbone()
    made.network = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"how the layers of Sequential follow.*trainable=named"):
        layers(made)


def test_names_by_pattern():
    made = backbone()
    assert named(made, patterns=["layer4.*.bn1.*", "layer1.0.conv1.weight"]) == {
        "network.layer4.0.bn1.weight",
        "network.layer4.0.bn1.bias",
        "network.layer1.0.conv1.weight",
    }
    with pytest.raises(ValueError, match="no parameter of this backbone fits 'blocks"):
        named(made, patterns=["layer4.*", "blocks.*"])
