"""One extractor for every family, against timm itself with the same weights."""

import copy
import pickle

import pytest
import timm
import torch

from unseen.nn.backbone import Backbone

FAMILIES = {
    "resnet18": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_lite0": 64,
    "convnext_atto": 64,
    "inception_v3": 96,
    "swin_tiny_patch4_window7_224": 56,
    "vit_tiny_patch16_224": 48,
}


def made(model, size, **changes):
    settings = {"taps": None, "weights": "none", "mean": None, "std": None, "options": None}
    torch.manual_seed(0)
    return Backbone(model, image_size=size, **(settings | changes)).eval()


def images(size, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request):
    return request.param, FAMILIES[request.param], made(request.param, FAMILIES[request.param])


def test_taps_and_final_map_are_those_of_timm(family):
    _, size, backbone = family
    network = backbone.network
    given = images(size)
    maps = backbone(given)
    normalised = (given / 255 - backbone.mean) / backbone.std
    info = {stage["module"]: stage for stage in (getattr(network.feature_info, "info", network.feature_info))}
    stages = list(info)
    with torch.no_grad():
        final, by_timm = network.forward_intermediates(normalised, norm=False)
    final = final if final.ndim == 4 else final[:, network.num_prefix_tokens :].transpose(1, 2).unflatten(
        2, network.patch_embed.grid_size
    )  # fmt: skip
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        final = final.permute(0, 3, 1, 2)
    torch.testing.assert_close(maps.final, final)
    assert maps.final.shape[1] == backbone.final_channels
    assert len(maps.taps) == 3
    for name, tap, channels, stride in zip(
        backbone.tap_names, maps.taps, backbone.tap_channels, backbone.tap_strides, strict=True
    ):
        torch.testing.assert_close(tap, by_timm[stages.index(name)])  # NCHW, whatever the family gives
        assert (channels, stride) == (info[name]["num_chs"], info[name]["reduction"])
        assert tap.shape[1] == channels
    assert not any(tap.shape == maps.final.shape and torch.equal(tap, maps.final) for tap in maps.taps)


def test_the_default_taps_are_the_last_three_stages_before_the_final_map():
    assert made("resnet18", 64).tap_names == ["layer1", "layer2", "layer3"]
    assert made("mobilenetv2_100", 64).tap_names == ["blocks.2", "blocks.4", "blocks.6"]
    assert made("vit_tiny_patch16_224", 48).tap_names == ["blocks.8", "blocks.9", "blocks.10"]


def test_a_tap_by_index_from_the_end_or_by_name_is_the_same_and_any_module_can_be_one():
    by_index, by_name = made("resnet18", 64, taps=[-2, 1]), made("resnet18", 64, taps=["layer3", "layer1"])
    assert by_index.tap_names == by_name.tap_names == ["layer3", "layer1"]
    for mine, other in zip(by_index(images(64)).taps, by_name(images(64)).taps, strict=True):
        assert torch.equal(mine, other)
    inner = made("resnet18", 64, taps=["layer2.0.conv1"])
    assert (inner.tap_channels, inner.tap_strides) == ([128], [8])


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("resnet18", {"taps": [7]}, "no stage 7.*0: act1, 1: layer1"),
        ("resnet18", {"taps": ["layer9"]}, "no module 'layer9'.*act1, layer1, layer2, layer3, layer4"),
        ("resnet18", {"taps": ["fc"]}, "'fc'"),
        ("resnet1", {}, "no such network.*resnet18"),
        ("resnet18", {"image_size": 0}, "image_size=0"),
        ("resnet18", {"options": {"colour": 1}}, "colour"),
    ],
)
def test_what_a_backbone_does_not_have_is_refused_with_the_choices(model, changes, words):
    size = changes.pop("image_size", 64)
    with pytest.raises(ValueError, match=words):
        made(model, size, **changes)


def test_bytes_and_floats_are_normalised_alike_with_the_networks_own_statistics():
    backbone = made("resnet18", 64)
    config = timm.get_pretrained_cfg("resnet18")
    assert backbone.mean.flatten().tolist() == pytest.approx(config.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(config.std)
    torch.testing.assert_close(backbone(images(64)).final, backbone(images(64) / 255).final)
    own = made("resnet18", 64, mean=[0.5] * 3, std=[0.25] * 3)
    wanted = own.network.forward_features((images(64) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(own(images(64)).final, wanted)


def test_copies_are_independent_and_pickles_work():
    backbone = made("mobilenetv3_small_100", 64)
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        next(copied.network.parameters()).mul_(3)
    assert not torch.equal(copied(images(64)).taps[0], backbone(images(64)).taps[0])
    restored = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(restored(images(64)).taps[1], backbone(images(64)).taps[1])


def test_channels_last_changes_no_number_and_gradients_reach_below_every_tap():
    backbone = made("resnet18", 64)
    plain = backbone(images(64))
    laid = backbone.to(memory_format=torch.channels_last)(
        images(64).contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(laid.final, plain.final, rtol=1e-4, atol=1e-5)
    for tap in backbone(images(64)).taps:
        [gradient] = torch.autograd.grad(tap.sum(), [backbone.network.conv1.weight], retain_graph=True)
        assert gradient.abs().sum() > 0
