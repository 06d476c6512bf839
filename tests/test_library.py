"""The library's face: the same parts and defaults as the command line; names and objects alike."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning import Callback
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

import unseen
from unseen.config.command_line import load_config
from unseen.config.values import UsageError
from unseen.nn.regularizer import Regularizer
from unseen.nn.trainable import norms
from unseen.sweep.lock import holder, locked

SMALL = [
    "sampler=class_balanced",
    "sampler.classes_per_batch=4",
    "sampler.images_per_class=4",
    "data.workers=0",
]


@pytest.fixture(scope="module")
def images():
    """64 images of 8 colours, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 8)
    colours = generator.integers(0, 255, (8, 1, 1, 3))[labels]
    noisy = colours + generator.normal(0, 25, (64, 40, 40, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def small_model():
    return unseen.embedder("resnet10t", weights="none", size=8, image_size=32)


def fitted(images, folder, **arguments):
    pixels, labels = images
    data = unseen.dataset(pixels, labels=labels, unseen_classes=[4, 5, 6, 7])
    overrides = [*SMALL, "pictures=false", *arguments.pop("overrides", [])]
    return unseen.fit(small_model(), data, epochs=1, folder=folder, overrides=overrides, **arguments)


@pytest.mark.slow
def test_arrays_become_a_run_with_record_pictures_and_embeddings(images, tmp_path):
    class Witness(Callback):
        batches = 0

        def on_train_batch_end(self, *arguments):
            self.batches += 1

    witness = Witness()
    run = fitted(images, tmp_path, callbacks=[witness], overrides=["pictures=true"])
    assert witness.batches > 0
    assert run.record.status == "success"
    assert (run.folder / "record.json").is_file()
    assert {"neighbours", "attention", "curves"} <= set(run.pictures)
    assert all(path.is_file() for path in run.pictures.values())
    assert {"unseen", "untrained", "gap"} <= set(run.metrics)
    pixels, labels = images
    embeddings = run.embed(pixels[32:])
    assert embeddings.shape == (32, 8)
    again = unseen.evaluate(embeddings, labels[32:]).metrics
    assert again["map_at_r"] == pytest.approx(run.metrics["unseen"]["map_at_r"])
    torch.testing.assert_close(run.embed(list(pixels[32:34])), embeddings[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        run.embed(pixels[32:34].transpose(0, 3, 1, 2)), embeddings[:2], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ("norm_softmax", "norm_softmax"),
        (ContrastiveLoss(), "ContrastiveLoss"),
        ({"contrastive": 1.0, "norm_softmax": 0.5}, "contrastive+norm_softmax"),
        ({"mine": (0.5, ContrastiveLoss())}, "mine"),
    ],
    ids=["name", "module", "names", "weighted module"],
)
def test_a_loss_is_a_name_an_object_or_several_of_them(images, tmp_path, loss, named):
    run = fitted(images, tmp_path, loss=loss, adversary="none")
    assert run.record.choices["loss"] == named
    assert run.record.choices["adversary"] == "none"
    assert run.model.layer_norm == ("norm_softmax" in named)


@pytest.mark.slow
def test_those_of_several_losses_that_compare_pairs_take_the_miner_and_the_memory(images, tmp_path):
    seen = {}

    class Witness(Callback):
        def on_train_start(self, trainer, learner):
            parts = learner.loss.parts.items()
            seen.update({name: (type(part.miner).__name__, part.memory is not None) for name, part in parts})

    typed = {"callbacks": [Witness()], "overrides": ["miner=hard", "memory=cross_batch"]}
    fitted(images, tmp_path, loss={"contrastive": 1.0, "proxy_anchor": 0.5}, **typed)
    assert seen == {"contrastive": ("BatchHardMiner", True), "proxy_anchor": ("NoneType", False)}


@pytest.mark.slow
def test_several_losses_embed_as_one_of_them_asks(images, tmp_path):
    run = fitted(images, tmp_path, loss={"contrastive": 1.0, "n_pair": 0.1})
    assert not run.model.normalize, "n_pair wants embeddings of free length"
    assert run.record.config["embedding"]["readout"] == "features"
    assert run.model.readout is not None, "what is deployed is no loss's choice"
    assert not run.record.config["embedding"]["normalize"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("embedding.size=32", "embedding.size"),
        ("embedding.whitening=null", "embedding.whitening"),
        ("backbone.taps=stages", "backbone.taps"),
        ("fusion=gap", "fusion._target_"),
    ],
)
def test_what_a_made_network_cannot_follow_is_refused(images, tmp_path, override, key):
    with pytest.raises(ValueError, match=rf"{override}.*{key}.*unseen\.embedder"):
        fitted(images, tmp_path / "run", overrides=[override])
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_was_frozen_once_is_not_said_to_learn(images, tmp_path):
    pixels, labels = images
    model, data = small_model(), unseen.dataset(pixels, labels=labels)
    model.backbone.freeze()  # as a fit with backbone.frozen=true does
    with pytest.raises(ValueError, match=r"was frozen.*overrides=\['backbone\.frozen=true'\]"):
        unseen.fit(model, data, epochs=1, folder=tmp_path / "run", overrides=SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_learned_weights_and_a_regulariser_train_and_stay_out_of_what_is_saved(images, tmp_path):
    losses = {"contrastive": 1.0, "norm_softmax": 0.5}
    typed = {"overrides": ["loss.learned_within=5", "regularizer.sizes=[12]"]}
    run = fitted(images, tmp_path / "run", loss=losses, regularizer="self_distillation", **typed)
    assert run.record.choices["regularizer"] == "self_distillation"
    assert run.record.config["loss"]["learned_within"] == 5
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state["loss.thetas"].abs().min() > 0
    assert [name for name in state if name.startswith("regularizer.branches")]
    bundle = unseen.load(run.save(tmp_path / "bundle"))
    assert sorted(bundle.embedder.state_dict()) == sorted(run.model.state_dict())
    assert not [name for name in bundle.embedder.state_dict() if "branch" in name]
    torch.testing.assert_close(bundle.embed(images[0][:4]), run.embed(images[0][:4]))


@pytest.mark.slow
def test_a_regulariser_of_ones_own_is_taken_as_an_object(images, tmp_path):
    class Short(Regularizer):
        def __init__(self, embedder, loss):
            super().__init__()

        def forward(self, batch):
            return 0.1 * batch.embedded.fused.features.square().sum(1).mean()

    run = fitted(images, tmp_path, loss="contrastive", regularizer=Short)
    assert run.record.choices["regularizer"] == "Short"


@pytest.mark.slow
def test_a_fusion_of_ones_own_is_taken_as_an_object(images, tmp_path):
    class Sum(nn.Module):
        def __init__(self, tap_channels, final_channels):
            super().__init__()
            self.out_features = final_channels

        def forward(self, maps):
            from unseen.nn.fusion import Fused

            return Fused(maps.final.sum((2, 3)), [])

    model = unseen.embedder("resnet10t", weights="none", size=8, image_size=32, fusion=Sum)
    pixels, labels = images
    data = unseen.dataset(pixels, labels=labels)
    overrides = [*SMALL, "pictures=false"]
    run = unseen.fit(model, data, epochs=1, folder=tmp_path, overrides=overrides, adversary="none")
    assert isinstance(run.model.fusion, Sum)


def test_a_folder_belongs_to_one_run_as_on_the_command_line(images, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("record.json", "checkpoints/last.ckpt"):
        (tmp_path / name).write_text("of another run")
    with pytest.raises(UsageError, match=r"belongs to a run already .*resume_from=last.* folder=<folder>"):
        fitted(images, tmp_path)
    assert (tmp_path / "record.json").read_text() == "of another run"
    (tmp_path / "free").mkdir()
    with locked(tmp_path / "free"), pytest.raises(UsageError, match=r"is at it\. .* folder=<folder>"):
        fitted(images, tmp_path / "free")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"'.*file' is a file\. Name another folder: folder=<folder>"):
        fitted(images, tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_run_goes_on_in_its_folder_and_leaves_it_free(images, tmp_path):
    first = fitted(images, tmp_path, adversary="none")
    again = fitted(images, tmp_path, adversary="none", overrides=["resume_from=last"])
    assert again.record.steps == first.record.steps
    with pytest.raises(UsageError, match="belongs to a run already"):
        fitted(images, tmp_path, adversary="none")
    assert holder(tmp_path) is None


def test_defaults_are_those_of_the_command_line():
    config = load_config(["data=folder", "data.root=.", "backbone.weights=none", "data.image_size=64"])
    model = unseen.embedder(weights="none", image_size=64)
    assert model.projection.out_features == config.embedding.size
    assert model.normalize == config.embedding.normalize
    assert type(model.fusion).__name__ == "AttentionFusion"
    assert model.backbone.final_channels == 2048


def test_names_are_refused_as_on_the_command_line(images):
    with pytest.raises(UsageError, match=r"fusion=atention.*did you mean 'attention'"):
        unseen.embedder("resnet10t", weights="none", fusion="atention")
    with pytest.raises(ValueError, match="resnet1"):
        unseen.embedder("resnet1x", weights="none")
    pixels, labels = images
    with pytest.raises(ValueError, match="label"):
        unseen.dataset(pixels, labels=labels[:-1])


def test_what_is_given_beside_a_named_data_set_is_refused():
    with pytest.raises(ValueError, match="unseen_classes was given beside the data set 'glyphs'"):
        unseen.dataset("glyphs", unseen_classes=0.3)


def test_arguments_of_the_wrong_kind_are_refused_in_words(images, tmp_path):
    model = small_model()
    data = unseen.dataset(images[0], labels=images[1])
    for arguments, error, message in (
        ((data, model), TypeError, "model is a Dataset. Wanted what unseen.embedder"),
        ((model, np.zeros((4, 8, 8, 3))), TypeError, "data is a ndarray. Wanted what unseen.dataset"),
    ):
        with pytest.raises(error, match=message):
            unseen.fit(*arguments, folder=tmp_path / "run")
    with pytest.raises(TypeError, match="loss is 3"):
        unseen.fit(model, data, loss=3, folder=tmp_path / "run")
    with pytest.raises(TypeError, match=r"a module such as ContrastiveLoss\(…\)"):
        unseen.fit(model, data, loss=ContrastiveLoss, folder=tmp_path / "run")
    with pytest.raises(UsageError, match="wanted a list of texts"):
        unseen.fit(model, data, overrides="seed=3", folder=tmp_path / "run")
    with pytest.raises(TypeError, match="backbone is a int"):
        unseen.embedder(3)
    with pytest.raises(ValueError, match="There are no images"):
        unseen.dataset(np.zeros((0, 8, 8, 3), np.uint8), labels=[])


def test_composing_leaves_nothing_behind():
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    config = load_config(["loss=triplet"])
    assert HydraConfig.instance().cfg is before
    assert not GlobalHydra.instance().is_initialized()
    assert config.choices.loss == "triplet"
    assert list(config.overrides) == ["loss=triplet"]


def test_import_unseen_loads_nothing_and_names_all():
    code = (
        "import sys, unseen; assert not {'torch', 'hydra', 'lightning', 'numpy'} & set(sys.modules); "
        "print(unseen.__version__, *dir(unseen))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"dataset", "embedder", "fit", "evaluate", "Embedder"} <= set(printed.split())
    for name in unseen.__all__:
        assert getattr(unseen, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = unseen.nothing


@pytest.mark.slow
def test_levers_are_switched_on_by_overrides(images, tmp_path):
    run = fitted(
        images, tmp_path, overrides=["trainable=norms", "averaging=ema", "averaging.share.decay=0.5"]
    )
    assert run.record.choices["trainable"] == "norms"
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    weight = run.model.projection.weight
    assert torch.equal(saved["state_dict"]["embedder.projection.weight"], weight)
    assert not torch.equal(saved["averaging"]["weights"]["projection.weight"], weight)
    learning = {name for name, one in run.model.backbone.named_parameters() if one.requires_grad}
    assert learning == norms(run.model.backbone)
