"""Finished runs are measured again as a run that was trained for it is, and nothing of them changes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from unseen.config.command_line import config_of_run
from unseen.config.export import export, weights_of
from unseen.config.measure import _changed, check_changes, measure_again
from unseen.config.run import run
from unseen.config.values import UsageError
from unseen.deploy.bundle import load
from unseen.tracking.record import RunRecord

pytestmark = pytest.mark.slow

QUICK = ["pictures=false", "evaluation.probe_classes=0", "evaluation.draws=2", "evaluation.resamples=20"]


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """`trained(*overrides)`: folder of a finished run."""
    root = tmp_path_factory.mktemp("runs")

    def make(*overrides):
        folder = root / "-".join(["run", *overrides]).replace("=", "-").replace("/", "_")
        if not folder.exists():
            words = [*tiny_run, *QUICK, *overrides, f"hydra.run.dir={folder}"]
            config = config_of_run("train", words, None)
            run(config)
        return folder

    return make


def similarities(folder):
    return np.load(folder / "queries.npz")["similarities"]


def measured(output):
    return [RunRecord.load(path) for path in sorted(output.glob("*/record.json"))]


def test_without_a_change_the_same_comes_out(trained, tmp_path):
    folder = trained("embedding.readout=features")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert measure_again([f"runs={folder}", f"output={tmp_path}"]) == 0
    [record] = measured(tmp_path)
    first = RunRecord.load(folder / "record.json")
    for split, values in first.metrics.items():
        assert record.metrics[split] == pytest.approx(values, abs=1e-6), split
    assert record.intervals == first.intervals
    assert record.job_key == first.job_key
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_another_readout_is_what_a_run_with_it_has(trained, tmp_path):
    """Training does not see the readout, so two runs that differ in it alone share their weights."""
    features, projection = trained("embedding.readout=features"), trained("embedding.readout=projection")
    for have, want in ((features, projection), (projection, features)):
        readout = RunRecord.load(want / "record.json").config["embedding"]["readout"]
        output = tmp_path / readout
        measure_again([f"runs={have}", f"output={output}", f"embedding.readout={readout}"])
        [record] = measured(output)
        wanted = RunRecord.load(want / "record.json")
        assert record.config["embedding"]["readout"] == readout
        assert record.metrics["unseen"] == pytest.approx(wanted.metrics["unseen"], abs=1e-6)
        assert record.metrics["gap"] == pytest.approx(wanted.metrics["gap"], abs=1e-6)


def test_the_pretrained_network_beside_a_finished_run_is_as_in_a_run_that_kept_it(
    trained, tiny_run, tmp_path
):
    """And the bundle of that run has both networks."""
    network = timm.create_model("resnet10t", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    weights = f"backbone.weights={tmp_path / 'weights.safetensors'}"
    have, want = trained(weights), trained(weights, "lever=pretrained_features")
    measure_again([f"runs={have}", f"output={tmp_path / 'out'}", "embedding.pretrained_share=0.5"])
    measure_again([f"runs={want}", f"output={tmp_path / 'back'}", "embedding.pretrained_share=0"])
    both, learned = similarities(want), similarities(have)
    np.testing.assert_allclose(similarities(next((tmp_path / "out").iterdir())), both, atol=1e-5)
    np.testing.assert_allclose(similarities(next((tmp_path / "back").iterdir())), learned, atol=1e-5)
    assert np.abs(both - learned).max() > 1e-3
    model = load(export(want, tmp_path / "bundle"))  # which compares their embeddings
    copied = model.embedder.pretrained.network.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in network.state_dict().items())
    random = trained("embedding.readout=features")
    with pytest.raises(UsageError, match="started from random weights"):
        measure_again([f"runs={random}", f"output={tmp_path}", "embedding.pretrained_share=0.5"])


def test_what_was_measured_is_not_measured_again(trained, tmp_path, capsys):
    command = [
        f"runs={trained('embedding.readout=features')}",
        f"output={tmp_path}",
        "metrics.recall_at=[1,3]",
    ]
    measure_again(command)
    [record] = measured(tmp_path)
    assert "recall_at_3" in record.metrics["unseen"]
    capsys.readouterr()
    measure_again(command)
    assert "measured before" in capsys.readouterr().out
    assert measured(tmp_path) == [record]
    measure_again([*command, "metrics.mrr=true"])
    assert len(measured(tmp_path)) == 2


def test_images_of_another_folder(trained, tmp_path):
    """Of one colour each: any network tells all of them apart, whatever it was trained on."""
    generator = np.random.default_rng(1)
    for label, colour in enumerate(generator.integers(0, 255, (4, 3))):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (40, 40), tuple(map(int, colour))).save(
                tmp_path / "photos" / str(label) / f"{index}.png"
            )
    output = tmp_path / "out"
    command = [f"runs={trained('embedding.readout=features')}", f"output={output}", "data=folder"]
    measure_again([*command, f"data.root={tmp_path / 'photos'}", "data.workers=0"])
    [record] = measured(output)
    assert record.metrics["unseen"]["recall_at_1"] == 1.0
    assert set(record.per_class["map_at_r"]) == {"2", "3"}
    assert record.config["data"]["root"] == str(tmp_path / "photos")
    assert record.config["data"]["image_size"] == 32


def test_a_change_of_what_was_trained_is_refused(trained, tmp_path):
    folder = trained("embedding.readout=features")
    for word in ("loss=triplet", "seed=3", "embedding.size=8", "backbone.taps=stages"):
        with pytest.raises(UsageError, match=f"{word}.*changes what was trained"):
            measure_again([f"runs={folder}", f"output={tmp_path}", word])
    with pytest.raises(UsageError, match="several values"):
        measure_again([f"runs={folder}", f"output={tmp_path}", "embedding.whitening=1,2"])
    with pytest.raises(UsageError, match="no finished run"):
        measure_again([f"runs={tmp_path}", f"output={tmp_path}"])
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "record.json", bare)
    with pytest.raises(UsageError, match="no checkpoint"):
        measure_again([f"runs={bare}", f"output={tmp_path / 'out'}"])


def test_another_size_of_images_is_refused_as_the_network_sees_its_own(tmp_path):
    with pytest.raises(UsageError, match=r"data\.image_size=64: the network sees .* Leave it out"):
        measure_again([f"runs={tmp_path}", f"output={tmp_path}", "data.image_size=64"])
    with pytest.raises(UsageError, match=r"there is no key 'date\.image_size'; did you mean 'data'"):
        check_changes(["date.image_size=64"], None)


def changed(tiny_run, overrides, changes):
    typed = [*tiny_run, *overrides]
    check_changes(changes, None)
    return _changed(config_of_run("train", typed, None), typed, changes, None)


def test_changes_are_checked_beside_what_the_run_chose(tiny_run):
    assert changed(tiny_run, [], ["data.split=fraction"]).data.source.split == "fraction"
    assert changed(tiny_run, [], ["data.train_fraction=0.7"]).data.source.train_fraction == 0.7
    with pytest.raises(UsageError, match=r"no key 'data\.fraction'"):
        changed(tiny_run, [], ["data.fraction=0.7"])


def test_a_section_that_is_chosen_anew_has_no_key_of_the_run_s_choice(tiny_run, coloured_tree):
    of_any = [word for word in tiny_run if not word.startswith(("data=", "data.root"))]
    of_a_table = ["data=csv", "data.path=a.csv", "data.split=order"]
    folder = ["data=folder", f"data.root={coloured_tree}"]
    found = changed(of_any, [*of_a_table, "optimizer.learning_rates.head=0.1"], folder).data
    assert (found.root, found.split, found.workers) == (str(coloured_tree), "order", 0)
    drawn = [word for word in of_any if not word.startswith("transforms=")]
    own = ["data=glyphs", "data.jitter_seed=3", "transforms.train.steps=[]", "transforms.evaluation.resize=2"]
    assert changed(drawn, own, folder).data.root == str(coloured_tree)
    held = ["protocol=holdout", "protocol.class_fraction=0.3", "protocol.seed=4"]
    found = changed(tiny_run, held, ["protocol=fixed"]).protocol
    assert ("class_fraction" in found, found.seed) == (False, 4)


def test_validation_alone_where_the_test_classes_are_not_to_be_seen(trained, tmp_path):
    folder = trained("protocol=holdout")
    measure_again([f"runs={folder}", f"output={tmp_path}", "evaluation.test=false"])
    [record] = measured(tmp_path)
    assert set(record.metrics) == {"validation"}
    content = json.loads(next(tmp_path.glob("*/record.json")).read_text())
    assert content["per_class"] == {}
    assert content["participation"] == {}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["data.split=fraction", "data.split_seed=1"], "test"),
        (["protocol=holdout", "protocol.class_fraction=0.5"], "validation"),
        (["protocol=holdout", "evaluation.test=false"], "validation"),
        (["protocol.seed=3"], "held-out"),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_what_was_trained_on_is_not_measured_as_if_it_were_unseen(
    trained, coloured_tree, tmp_path, changes, part, moved
):
    folder = trained("embedding.readout=features")
    root = shutil.copytree(coloured_tree, tmp_path / "moved") if moved else coloured_tree
    command = [f"runs={folder}", f"output={tmp_path / 'out'}", "data=folder", f"data.root={root}"]
    with pytest.raises(UsageError, match=rf"trained on \d+ of the \d+ {part} images .* such as 'class"):
        measure_again([*command, *changes])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chosen", "epoch"), [(4, 3), (None, 0)])
def test_the_last_weights_stand_in_for_those_of_the_chosen_epoch_only_where_they_are_the_same(
    tmp_path, chosen, epoch
):
    (tmp_path / "checkpoints").mkdir()
    saved = {"epoch": epoch, "state_dict": {"embedder.weight": torch.ones(2), "loss.proxies": torch.ones(1)}}
    torch.save(saved, tmp_path / "checkpoints" / "last.ckpt")
    assert list(weights_of(tmp_path, SimpleNamespace(chosen_epoch=chosen))) == ["weight"]
    with pytest.raises(ValueError, match=r"of epoch 2, are gone: last\.ckpt is of epoch .*001\.ckpt"):
        weights_of(tmp_path, SimpleNamespace(chosen_epoch=2))
