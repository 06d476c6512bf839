"""The readout is fitted on training images alone, always the same ones, and several of a class."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.decomposition import PCA

from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.evaluation import readout as module
from unseen.evaluation.embed import embed, fused_features
from unseen.evaluation.readout import balanced_sample, fit_readout

pytestmark = pytest.mark.slow


def made(tiny_run, folder, *overrides):
    overrides = ["sampler.classes_per_batch=4", "embedding.size=6", *overrides]
    return build(load_config([*tiny_run, "pictures=false", *overrides], run_folder=folder))


def test_it_takes_the_principal_components_of_the_training_images(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "embedding.whitening=null")
    embedder, rows = run.learner.embedder, run.data.split.train
    weights = {name: value.clone() for name, value in embedder.state_dict().items() if "readout" not in name}
    embedder.train()
    fit_readout(embedder, run.data)
    assert embedder.training
    assert all(torch.equal(value, embedder.state_dict()[name]) for name, value in weights.items())
    features = embed(embedder, run.data.loader(rows), features=fused_features).features.double().numpy()
    wanted = PCA(6, svd_solver="full").fit(features)
    np.testing.assert_allclose(embedder.readout.mean.numpy(), wanted.mean_, atol=1e-4)
    shared = np.linalg.svd(embedder.readout.directions.numpy() @ wanted.components_.T)[1]
    np.testing.assert_allclose(shared, 1, atol=1e-3)


def test_other_images_do_not_matter_and_the_sample_is_bounded(tiny_run, tmp_path, monkeypatch):
    run = made(tiny_run, tmp_path)
    monkeypatch.setattr(module, "AT_LEAST", 12)
    seen = []
    loader = run.data.loader
    monkeypatch.setattr(run.data, "loader", lambda rows: seen.append(rows) or loader(rows))
    fit_readout(run.learner.embedder, run.data)
    fit_readout(run.learner.embedder, run.data)
    first, second = seen
    assert len(first) == 12
    assert np.array_equal(first, second)
    assert set(first) <= set(run.data.split.train)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 60))
def test_a_sample_holds_as_many_of_each_class_and_several(labels, count):
    labels = np.array(labels) * 7
    sample = balanced_sample(labels, count)
    assert len(set(sample.tolist())) == len(sample)
    assert sample.tolist() == sorted(sample.tolist())
    names = np.unique(labels)
    taken = {name: int((labels[sample] == name).sum()) for name in names}
    drawn = [name for name in names if taken[name]]
    usual = [min(4, int((labels == name).sum())) for name in drawn]
    assert len(drawn) == len(names) or sum(usual) >= count
    assert sum(usual) - 4 < count, "not a class more than it takes"
    assert len(sample) == min(count, sum(int((labels == name).sum()) for name in drawn))
    most = max(taken.values())
    for name in drawn:  # fewer only where there are no more
        assert taken[name] >= most - 1 or taken[name] == (labels == name).sum()


@pytest.mark.parametrize("each", [1, 2, 3, 4, 9])
def test_a_sample_of_small_classes_is_as_large_as_one_of_large_ones(each):
    assert len(balanced_sample(np.arange(3000) // each, 600)) == 600


def test_training_ends_with_the_readout_of_its_final_weights_and_the_checkpoint_holds_it(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "trainer.max_epochs=2")
    run.trainer.fit(run.learner, datamodule=run.data)
    held = run.learner.embedder.readout.directions.clone()
    fit_readout(run.learner.embedder, run.data)
    torch.testing.assert_close(run.learner.embedder.readout.directions, held, rtol=0, atol=0)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["embedder.readout.directions"], held)


def test_the_validated_embedding_is_the_one_that_would_be_deployed(tiny_run, tmp_path):
    run = made(
        tiny_run, tmp_path, "protocol=holdout", "protocol.class_fraction=0.5", "sampler.classes_per_batch=2"
    )
    run.trainer.fit(run.learner, datamodule=run.data)
    logged = run.trainer.callback_metrics["validation/map_at_r"].item()
    rows = run.data.split.validation
    images = embed(run.learner.embedder, run.data.loader(rows))
    assert run.evaluate(images.embeddings, images.labels).metrics["map_at_r"] == pytest.approx(logged)


def test_averaged_weights_are_validated_and_deployed_with_a_readout_of_their_own(tiny_run, tmp_path):
    run = made(tiny_run, tmp_path, "trainer.max_epochs=2")
    run.trainer.callbacks.append(EMAWeightAveraging(decay=0.5))
    run.trainer.fit(run.learner, datamodule=run.data)
    held = run.learner.embedder.readout.directions.clone()
    fit_readout(run.learner.embedder, run.data)
    torch.testing.assert_close(run.learner.embedder.readout.directions, held, rtol=0, atol=0)


def test_without_a_readout_nothing_is_embedded(tiny_run, tmp_path, monkeypatch):
    run = made(tiny_run, tmp_path, "embedding.readout=projection")
    monkeypatch.setattr(module, "embed", lambda *_, **__: pytest.fail("nothing to fit"))
    fit_readout(run.learner.embedder, run.data)
