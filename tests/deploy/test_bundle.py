"""A bundle gives what the run gave, needs no trainer, and is refused when a byte of it has changed."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

import unseen
from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.config.export import export
from unseen.deploy.bundle import _content_hash
from unseen.deploy.model import images_of
from unseen.deploy.parts import made
from unseen.evaluation.embed import embed
from unseen.workflow.run import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    tiny_run = request.getfixturevalue("tiny_run")
    folder = tmp_path_factory.mktemp("run")
    run = build(load_config([*tiny_run, "pictures=false", "sampler.classes_per_batch=4"], run_folder=folder))
    execute(run)
    return run


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory):
    return export(finished.folder, tmp_path_factory.mktemp("out") / "bundle")


def test_it_embeds_as_the_run_does_from_paths_pillow_arrays_and_folders(finished, bundle, coloured_tree):
    model = unseen.load(bundle)
    rows = finished.data.split.query
    wanted = embed(finished.learner.embedder, finished.data.loader(rows)).embeddings
    paths = [coloured_tree / finished.data.manifest.paths[int(row)] for row in rows]
    assert torch.equal(model.embed(paths), wanted) or torch.allclose(model.embed(paths), wanted, atol=1e-5)
    pillow = [Image.open(path) for path in paths]
    torch.testing.assert_close(model.embed(pillow), model.embed(paths), rtol=0, atol=0)
    arrays = np.stack([np.asarray(image) for image in pillow])
    torch.testing.assert_close(model.embed(arrays), model.embed(paths), rtol=0, atol=0)
    torch.testing.assert_close(model.embed(paths, batch_size=3), model.embed(paths), rtol=1e-4, atol=1e-5)
    whole = images_of(coloured_tree)
    assert len(whole) == 64
    torch.testing.assert_close(model.embed(coloured_tree), model.embed(whole))
    assert model.size == wanted.shape[1]


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.uint8), torch.zeros((3, 8, 8)), Image.new("RGB", (8, 8))]
)
def test_one_image_is_not_taken_for_several(bundle, image):
    model = unseen.load(bundle)
    with pytest.raises(ValueError, match=r"one image, and several are wanted: \[image\]"):
        model.embed(image)
    assert model.embed([image]).shape == (1, model.size)


def test_an_array_of_paths_is_several_images(bundle, coloured_tree):
    model, paths = unseen.load(bundle), [str(path) for path in images_of(coloured_tree)[:4]]
    wanted = model.embed(paths)
    torch.testing.assert_close(model.embed(np.array(paths), batch_size=np.int64(4)), wanted)


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_batches_of_no_images_are_refused(bundle, size):
    with pytest.raises(ValueError, match="wanted a whole number from 1 upwards"):
        unseen.load(bundle).embed([np.zeros((8, 8, 3), np.uint8)], batch_size=size)


def test_it_says_what_it_is_worth(finished, bundle):
    model = unseen.load(bundle)
    assert model.facts["metrics"]["unseen"] == finished.record.metrics["unseen"]
    assert model.facts["split"] == finished.record.split
    card = (bundle / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: unseen" in front
    assert f"{100 * finished.record.metrics['unseen']['recall_at_1']:.1f}" in card


def test_loading_needs_no_trainer_and_no_configuration(bundle):
    code = f"""
        import sys, unseen
        model = unseen.load({str(bundle)!r})
        import numpy as np
        assert model.embed(np.zeros((2, 40, 40, 3), np.uint8)).shape == (2, model.size)
        names = ("lightning", "hydra", "omegaconf", "pytorch_metric_learning", "sklearn", "scipy", "pandas",
                 "numba", "matplotlib", "wandb", "unseen.tracking", "unseen.training", "unseen.losses")
        print([name for name in names if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def copied(bundle, folder):
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["weights.safetensors", "README.md", "bundle.json"])
def test_a_changed_byte_is_refused(bundle, tmp_path, name):
    other = copied(bundle, tmp_path / "other")
    content = bytearray((other / name).read_bytes())
    content[len(content) // 2] ^= 1
    (other / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        unseen.load(other)


def test_what_is_missing_or_of_another_form_is_named(bundle, tmp_path):
    with pytest.raises(ValueError, match=r"no bundle: there is no bundle\.json"):
        unseen.load(tmp_path)
    other = copied(bundle, tmp_path / "other")
    (other / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights\.safetensors' is missing"):
        unseen.load(other)
    content = json.loads((bundle / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(ValueError, match="format 9"):
        unseen.load(other)


@pytest.mark.parametrize(
    "target", ["os.system", "unseen.nn.weights._read", "subprocess.run", "unseen.library.fit"]
)
def test_a_description_cannot_call_anything_else(target):
    with pytest.raises(ValueError, match="parts of unseen and torchvision alone"):
        made({"nested": [{"_target_": target, "command": "true"}]})


def test_a_bundle_reads_no_files_but_its_own(bundle, coloured_tree, tmp_path):
    other = copied(bundle, tmp_path / "other")
    content = json.loads((other / "bundle.json").read_text())
    content["parts"]["backbone"]["options"] = {"checkpoint_path": str(tmp_path / "somewhere.pth")}
    (other / "bundle.json").write_text(json.dumps({**content, "hash": _content_hash(content)}))
    wanted = unseen.load(bundle).embed(coloured_tree)
    assert torch.equal(unseen.load(other).embed(coloured_tree), wanted)


def test_a_bundle_never_takes_the_place_of_something(bundle, finished):
    before = sorted(path.name for path in bundle.iterdir())
    with pytest.raises(ValueError, match="holds something already"):
        export(finished.folder, bundle)
    assert sorted(path.name for path in bundle.iterdir()) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_embeds_otherwise_is_not_left_behind(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("unseen.config.export.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="otherwise than the run does"):
        export(finished.folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_could_not_be_checked_is_not_left_behind(finished, tmp_path, monkeypatch):
    def breaks(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("unseen.config.export._check", breaks)
    with pytest.raises(KeyboardInterrupt):
        export(finished.folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_run_that_did_not_succeed_has_no_bundle(finished, tmp_path):
    with pytest.raises(ValueError, match=r"no record\.json"):
        export(tmp_path)
    record = json.loads((finished.folder / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**record, "status": "failed"}))
    with pytest.raises(ValueError, match="ended as 'failed'"):
        export(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="no checkpoint"):
        export(tmp_path)


def test_the_command_writes_it_beside_the_run(typed, finished, tmp_path):
    done = typed("export", f"run={finished.folder}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unseen.load(" in done.stdout
    assert unseen.load(finished.folder / "bundle").size == 128


def test_a_run_that_held_classes_out_gives_thresholds(tiny_run, tmp_path):
    words = [*tiny_run, "pictures=false", "sampler.classes_per_batch=2", "protocol=holdout"]
    run = build(load_config([*words, "protocol.class_fraction=0.5"], run_folder=tmp_path / "run"))
    execute(run)
    model = unseen.load(export(run.folder))
    rows = run.data.split.validation
    found = embed(run.learner.embedder, run.data.loader(rows))
    vectors = found.embeddings.double()
    similarities = (vectors @ vectors.T).numpy()
    different = similarities[(found.labels[:, None] != found.labels).numpy()]
    for rate, entry in zip((0.1, 0.01), model.facts["thresholds"]["same"], strict=False):
        assert (different >= entry["threshold"]).mean() <= rate
    assert model.facts["thresholds"]["classes"] == len(np.unique(found.labels.numpy()))
    card = (run.folder / "bundle" / "README.md").read_text()
    assert f"| {model.facts['thresholds']['known'][0]['threshold']:.3f} |" in card


def test_without_held_out_classes_there_are_none(finished, bundle):
    assert unseen.load(bundle).facts["thresholds"] is None
    assert "No thresholds of similarity were calibrated" in (bundle / "README.md").read_text()
