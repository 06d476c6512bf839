"""One extractor for every family, against timm itself with the same weights."""

import copy
import pickle
from pathlib import Path

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
    settings = {
        "taps": "late",
        "weights": "none",
        "mean": None,
        "std": None,
        "options": None,
        "frozen": False,
    }
    torch.manual_seed(0)
    return Backbone(model, image_size=size, **(settings | changes)).eval()


def images(size, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request):
    return request.param, FAMILIES[request.param], made(request.param, FAMILIES[request.param])


@pytest.mark.parametrize("name", ["levit_128s", "pvt_v2_b0"])
def test_networks_of_tokens_in_stages_give_square_maps(name):
    backbone = made(name, 64)
    given = torch.rand(2, 3, 64, 64)
    maps = backbone(given)
    final = backbone.network.forward_features((given - backbone.mean) / backbone.std)
    if final.ndim == 3:  # (B, tokens, C), row by row
        side = round(final.shape[1] ** 0.5)
        final = torch.stack([final[:, row * side : (row + 1) * side] for row in range(side)], 1).movedim(3, 1)
    torch.testing.assert_close(maps.final, final)
    assert [tap.shape[1] for tap in maps.taps] == backbone.tap_channels
    assert all(tap.shape[2] == tap.shape[3] for tap in maps.taps)


def test_a_network_whose_blocks_give_no_maps_is_refused_in_words():
    with pytest.raises(ValueError, match="taps: no blocks are known of this network"):
        made("mvitv2_tiny", 64)


@pytest.mark.slow
def test_stages_and_final_map_are_those_of_timm(family):
    name, size, _ = family
    stages = [stage["module"] for stage in info_of(made(name, size))][-3:]
    backbone = made(name, size, taps=stages)
    network = backbone.network
    given = images(size)
    maps = backbone(given)
    normalised = (given / 255 - backbone.mean) / backbone.std
    info = {stage["module"]: stage for stage in info_of(backbone)}
    with torch.no_grad():
        final, by_timm = network.forward_intermediates(normalised, norm=False)
    final = final if final.ndim == 4 else final[:, network.num_prefix_tokens :].transpose(1, 2).unflatten(
        2, network.patch_embed.grid_size
    )  # fmt: skip
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        final = final.permute(0, 3, 1, 2)
    torch.testing.assert_close(maps.final, final)
    assert maps.final.shape[1] == backbone.final_channels
    for name, tap, channels, stride in zip(
        backbone.tap_names, maps.taps, backbone.tap_channels, backbone.tap_strides, strict=True
    ):
        torch.testing.assert_close(tap, by_timm[list(info).index(name)])  # NCHW, whatever the family gives
        assert (channels, stride) == (info[name]["num_chs"], info[name]["reduction"])
        assert tap.shape[1] == channels


def info_of(backbone):
    info = backbone.network.feature_info
    return getattr(info, "info", info)


# The published taps are the last block at stride 16 and the two at stride 32 before the final map.
LATE = {
    "resnet10t": ["layer2.0", "layer3.0", "layer4.0"],  # one block a stage
    "resnet18": ["layer3.1", "layer4.0", "layer4.1"],  # two blocks at stride 32: the final one is needed
    "resnet50": ["layer3.5", "layer4.0", "layer4.1"],
    "mobilenetv2_100": ["blocks.4.2", "blocks.5.2", "blocks.6.0"],
    "mobilenetv3_large_100": ["blocks.4.1", "blocks.5.1", "blocks.5.2"],
    "efficientnet_b0": ["blocks.4.2", "blocks.5.3", "blocks.6.0"],
    "tf_efficientnet_lite0": ["blocks.4.2", "blocks.5.3", "blocks.6.0"],
    "convnext_tiny": ["stages.2.blocks.8", "stages.3.blocks.0", "stages.3.blocks.1"],
    "swin_tiny_patch4_window7_224": ["layers.2.blocks.5", "layers.3.blocks.0", "layers.3.blocks.1"],
    "inception_v3": ["Mixed_6e", "Mixed_7a", "Mixed_7b"],
    "vit_small_patch16_224": ["blocks.8", "blocks.9", "blocks.10"],  # one stride: before the final block
    "vgg11": ["features.14", "features.19", "features.20"],  # no blocks: timm's stages
}


@pytest.mark.parametrize("model", LATE)
def test_the_default_taps_are_late_blocks_at_the_same_depth_in_every_family(model):
    size = 112 if "patch" in model else 96
    backbone = made(model, size)
    assert backbone.tap_names == LATE[model]
    maps = backbone(images(size, 1))
    if model.startswith(("resnet10", "vit", "vgg")):
        return
    assert backbone.tap_strides == [16, 32, 32]
    sides = [round(size / stride) for stride in backbone.tap_strides]
    for tap, channels, side in zip(maps.taps, backbone.tap_channels, sides, strict=True):
        assert tap.shape[1] == channels
        assert abs(tap.shape[2] - side) <= 2  # Inception does not pad


def test_every_backbone_of_the_configuration_has_its_taps_asserted():
    folder = Path(__file__).parents[2] / "conf" / "backbone"
    models = {
        line.split(": ")[1]
        for file in folder.glob("[!_]*.yaml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("model: ")
    }
    assert models <= set(LATE)


def test_the_other_choices_hold_the_last_stage_and_the_final_map():
    def taps(model, choice, size=64):
        return made(model, size, taps=choice).tap_names

    assert taps("resnet18", "stages") == ["layer2.1", "layer3.1", "layer4.1"]
    assert taps("resnet18", "late_and_final") == ["layer3.1", "layer4.0", "final"]
    assert taps("mobilenetv2_100", "late_and_final") == ["blocks.4.2", "blocks.5.2", "blocks.6.0", "final"]
    assert taps("mobilenetv2_100", "stages_and_final") == ["blocks.2.2", "blocks.4.2", "blocks.6.0", "final"]
    assert taps("vit_tiny_patch16_224", "stages", 48) == ["blocks.9", "blocks.10", "blocks.11"]
    backbone = made("resnet18", 64, taps=["layer2", "final"])
    maps = backbone(images(64))
    assert maps.taps[1] is maps.final
    assert (backbone.tap_channels, backbone.tap_strides) == ([128, 512], [8, 32])


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
        ("resnet18", {"taps": "early"}, "taps=early.*late, late_and_final, stages"),
        ("resnet1", {}, "no such network.*resnet18"),
        ("resnet18", {"image_size": 0}, "image_size=0"),
        ("resnet18", {"options": {"colour": 1}}, "colour"),
        ("resnet18", {"options": {"checkpoint_path": "x.pth"}}, "checkpoint_path.*backbone.weights"),
    ],
)
def test_what_a_backbone_does_not_have_is_refused_with_the_choices(model, changes, words):
    size = changes.pop("image_size", 64)
    with pytest.raises(ValueError, match=words):
        made(model, size, **changes)


@pytest.mark.slow
def test_bytes_and_floats_are_normalised_alike_with_the_networks_own_statistics():
    backbone = made("resnet18", 64)
    config = timm.get_pretrained_cfg("resnet18")
    assert backbone.mean.flatten().tolist() == pytest.approx(config.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(config.std)
    torch.testing.assert_close(backbone(images(64)).final, backbone(images(64) / 255).final)
    own = made("resnet18", 64, mean=[0.5] * 3, std=[0.25] * 3)
    wanted = own.network.forward_features((images(64) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(own(images(64)).final, wanted)


@pytest.mark.slow
def test_copies_are_independent_and_pickles_work():
    backbone = made("mobilenetv3_small_100", 64)
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        next(copied.network.parameters()).mul_(3)
    assert not torch.equal(copied(images(64)).taps[0], backbone(images(64)).taps[0])
    restored = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(restored(images(64)).taps[1], backbone(images(64)).taps[1])


@pytest.mark.slow
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


@pytest.mark.parametrize(("model", "tap"), [("resnet18", "layer4.0.bn2"), ("vgg11", "features.13")])
def test_a_tap_that_what_follows_it_writes_into_is_refused(model, tap):
    with pytest.raises(ValueError, match=f"module '{tap}' gives no feature map .* changes in place"):
        made(model, 64, taps=[tap])


def test_images_of_any_floating_point_width_are_taken():
    backbone = made("resnet18", 64, taps="stages").eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(backbone(images.double()).final, backbone(images).final)
