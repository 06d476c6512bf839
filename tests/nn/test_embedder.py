"""What the embedder promises: lengths, shapes, and that the frozen stays frozen."""

from functools import partial

import pytest
import torch
from torch import nn

from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.fusion import AttentionFusion, LastMap, tanh_score
from unseen.nn.trainable import everything


def made(fusion=LastMap, **changes):
    torch.manual_seed(0)
    backbone = Backbone(
        "resnet10t",
        image_size=32,
        taps="late",
        weights="none",
        mean=None,
        std=None,
        options=None,
        frozen=False,
    )
    return Embedder(
        backbone,
        fusion,
        **(
            {
                "size": 7,
                "normalize": True,
                "layer_norm": False,
                "readout": "projection",
                "whitening": 1.0,
                "frozen_batch_norm": False,
            }
            | changes
        ),
    )


def test_layer_norm_gives_each_embedding_mean_zero_and_variance_one_before_it_is_normalised():
    embedder, given = made(layer_norm=True, normalize=False).eval(), images()
    embedded = embedder(given)
    plain = embedder.projection(embedded.fused.features)
    centred = plain - plain.mean(1, keepdim=True)
    torch.testing.assert_close(
        embedded.embedding, centred / (plain.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    )
    embedder.normalize = True
    torch.testing.assert_close(embedder(given).embedding, nn.functional.normalize(embedded.embedding))


def images():
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


def test_embeddings_have_length_one_or_are_the_plain_linear_map():
    attention = partial(AttentionFusion, score=tanh_score, per_tap=False, jitter=0.0)
    embedder, given = made(attention).eval(), images()
    embedded = embedder(given)
    assert embedded.embedding.shape == (4, 7)
    torch.testing.assert_close(embedded.embedding.norm(dim=1), torch.ones(4))
    assert len(embedded.fused.attention) == 3
    embedder.normalize = False
    plain = embedder(given)
    torch.testing.assert_close(plain.embedding, embedder.projection(plain.fused.features))
    torch.testing.assert_close(nn.functional.normalize(plain.embedding), embedded.embedding)


def statistics(embedder):
    return {name: value.clone() for name, value in embedder.named_buffers() if "running" in name}


@pytest.mark.slow
def test_frozen_batch_norm_survives_training_mode():
    for frozen in (True, False):
        embedder = made(frozen_batch_norm=frozen)
        embedder.train()
        before = statistics(embedder)
        embedder(images())
        same = all(torch.equal(value, before[name]) for name, value in statistics(embedder).items())
        assert same == frozen


def test_a_frozen_backbone_neither_learns_nor_drifts_and_can_be_thawed():
    embedder = made().train()
    embedder.choose_trainable([])
    before = statistics(embedder)
    embedder(images()).embedding.sum().backward()
    assert all(parameter.grad is None for parameter in embedder.backbone.parameters())
    assert embedder.projection.weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in statistics(embedder).items())
    embedder.choose_trainable(everything(embedder.backbone))
    embedder(images()).embedding.square()[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in embedder.backbone.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in statistics(embedder).items())


def test_batch_norm_keeps_its_statistics_where_its_own_weights_rest():
    embedder = made().train()
    chosen = {"network.layer1.0.bn1.weight", "network.layer4.0.conv1.weight"}
    embedder.choose_trainable(chosen)
    before = statistics(embedder)
    embedder.eval().train()
    embedder(images()).embedding.sum().backward()
    weights = dict(embedder.backbone.named_parameters())
    assert {name for name, weight in weights.items() if weight.grad is not None} == chosen
    moved = {name for name, value in statistics(embedder).items() if not torch.equal(value, before[name])}
    assert moved == {f"backbone.network.layer1.0.bn1.running_{kind}" for kind in ("mean", "var")}


def test_an_embedding_has_a_dimension():
    with pytest.raises(ValueError, match=r"embedding\.size=0"):
        made(size=0)


def test_the_pretrained_network_is_read_beside_the_learned_one_and_only_where_it_is_deployed():
    embedder, given = made(readout="features", pretrained_share=0.5), images()
    plain = nn.functional.adaptive_avg_pool2d(embedder.eval().backbone(given).final, 1).flatten(1)
    with torch.no_grad():
        for weight in embedder.backbone.parameters():
            weight.mul_(1.1)
    deployed = embedder(given)
    torch.testing.assert_close(deployed.pretrained, plain)
    assert not torch.allclose(deployed.fused.features, plain)
    assert deployed.embedding.shape == (4, 7)
    read = embedder.readout(torch.cat([deployed.fused.features, plain], dim=1))
    torch.testing.assert_close(deployed.embedding, nn.functional.normalize(read))
    embedder.train()
    assert not any(module.training for module in embedder.pretrained.modules())
    embedder.pretrained = nn.Identity()  # would fail if it were asked
    embedded = embedder(given)
    assert embedded.pretrained is None
    torch.testing.assert_close(embedded.embedding, embedder.embed_features(embedded.fused.features))


def test_a_share_is_one_and_wants_a_readout_of_features():
    with pytest.raises(ValueError, match=r"embedding\.pretrained_share=1\.5.*in \[0, 1\]"):
        made(readout="features", pretrained_share=1.5)
    with pytest.raises(ValueError, match=r"pretrained_share=0\.5 with embedding\.readout=projection"):
        made(pretrained_share=0.5)
