"""Low-rank additions: nothing at first, `α / r · B A` later, gone after they are merged."""

import builtins

import pytest
import torch

from unseen.nn.backbone import Backbone
from unseen.nn.lora import has_additions, lora, merge
from unseen.nn.trainable import everything, layers

SETTINGS = {"rank": 4, "alpha": 6, "dropout": 0.0, "modules": ["*"]}


def backbone(model, **options):
    torch.manual_seed(0)
    made = Backbone(
        model, image_size=32, taps="late", weights="none", mean=None, std=None, options=options, frozen=False
    )
    return made.eval()


def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs(made):
    with torch.no_grad():
        maps = made(images())
    return [*maps.taps, maps.final]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32}),
        ("mobilenetv2_035", {"pad_type": "same"}),
        ("resnet10t", {}),
    ],
)
def test_additions_begin_at_nothing_and_end_in_the_weights(model, options):
    pytest.importorskip("peft")
    made = backbone(model, **options)
    before, weights = outputs(made), {name: w.clone() for name, w in made.state_dict().items()}
    names = lora(made, **SETTINGS)
    assert has_additions(made)
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(made), strict=True))
    added = dict(made.named_parameters())
    assert names == {name for name in added if ".lora_A." in name or ".lora_B." in name}
    # Each layer of timm's keeps its additions.
    assert sorted(name for layer in layers(made) for name in layer) == sorted(everything(made))

    wanted, generator = dict(weights), torch.Generator().manual_seed(1)
    for name in sorted(name for name in names if ".lora_B." in name):
        b, a = added[name], added[name.replace("lora_B", "lora_A")]
        b.data = torch.randn(b.shape, generator=generator) * 0.05
        place = name.removesuffix(".lora_B.default.weight") + ".weight"
        # A has the kernel, B is 1×1.
        delta = torch.einsum("or,ri...->oi...", b.detach().flatten(1), a.detach())
        wanted[place] = weights[place] + SETTINGS["alpha"] / SETTINGS["rank"] * delta
    adapted = outputs(made)
    assert not torch.allclose(adapted[-1], before[-1], atol=1e-3)
    merge(made)
    assert not has_additions(made)
    merged = made.state_dict()
    assert merged.keys() == weights.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-4, atol=1e-5)
    for one, other in zip(adapted, outputs(made), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modules": ["*.qkv"]}, r"modules: no linear layer or convolution .* fits '\*\.qkv'"),
        ({"rank": 4000}, r"more than rank=4000"),
        ({"rank": 0}, "rank=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=words):
        lora(backbone("resnet10t"), **(SETTINGS | changes))


def test_without_peft_it_is_said_how_to_get_it(monkeypatch):
    find = builtins.__import__

    def absent(name, *arguments, **more):
        if name == "peft":
            raise ImportError(name)
        return find(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'unseen-dml\[lora\]'"):
        lora(backbone("resnet10t"), **SETTINGS)


def test_merging_leaves_a_plain_backbone_alone():
    made = backbone("resnet10t")
    before = {name: id(part) for name, part in made.named_modules()}
    merge(made)
    assert {name: id(part) for name, part in made.named_modules()} == before
