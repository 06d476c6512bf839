"""Every choice of the groups of networks builds, and gives what it says."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from pytorch_metric_learning.losses import MultiSimilarityLoss
from tests.nn.adversaries import CLASSES, FUSED, IMAGES, batch_of, embedder, labels

from unseen.config.command_line import config_folder, load_config
from unseen.losses import MetricLoss
from unseen.nn.embedder import Embedder
from unseen.nn.regularizer import RegularizerInput

TREE = "data.root=/images"


def choices(group):
    return sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml") if path.stem[0] != "_")


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices("backbone"))
def test_every_backbone_builds_with_three_taps(choice):
    size = {"inception": 96, "swin": 56}.get(choice, 64)
    config = load_config(
        ["data=folder", TREE, f"backbone={choice}", "backbone.weights=none", f"data.image_size={size}"]
    )
    backbone = instantiate(config.backbone).eval()
    assert len(backbone.tap_names) == 3
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert [tap.shape[1] for tap in maps.taps] == backbone.tap_channels


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices("fusion"))
def test_every_fusion_joins_a_backbone(choice):
    config = load_config([f"fusion={choice}"])
    embedder = Embedder(instantiate(config.backbone), instantiate(config.fusion), **config.embedding)
    embedded = embedder.eval()(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    assert embedded.embedding.shape == (2, config.embedding.size)
    assert embedded.fused.features.shape == (2, embedder.fusion.out_features)
    assert bool(embedded.fused.attention) == choice.startswith("attention")


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices("adversary"))
def test_every_adversary_gives_a_loss_or_is_none(choice):
    make = instantiate(load_config([f"adversary={choice}"]).adversary)
    if choice == "none":
        assert make is None
        return
    model = embedder(size=16)
    seen = 16 if make.keywords["sees"] == "embedding" else FUSED
    adversary = make(in_features=seen, num_classes=CLASSES)
    assert adversary.strength_at(0.5, 0) == 0 < adversary.strength_at(0.5, 1)
    output = adversary(batch_of(model), adversary.strength_at(0.5, 1))
    assert output.loss.isfinite()
    assert output.logits.shape == (IMAGES, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("choice", choices("regularizer"))
def test_every_regulariser_gives_a_loss_or_is_none(choice):
    make = instantiate(load_config([f"regularizer={choice}"]).regularizer)
    if choice == "none":
        assert make is None
        return

    loss = MetricLoss(MultiSimilarityLoss(), None, compares_pairs=True)
    model = embedder()
    regularizer = make(embedder=model, loss=lambda size: loss)
    images = torch.zeros(IMAGES, 3, 1, 1)
    embedded, ids = model(images), torch.arange(IMAGES)
    of_batch = loss(embedded.embedding, labels(), ids)
    batch = RegularizerInput(images, embedded, model, labels(), ids, of_batch, loss)
    assert regularizer(batch).isfinite()
    assert regularizer(batch).requires_grad
