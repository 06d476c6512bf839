"""A job is frozen before anything runs, under the key that the run itself will find."""

import json
import shutil

import pytest
import timm
import torch
from omegaconf import OmegaConf

from unseen.config.build import build
from unseen.config.command_line import UsageError, load_config
from unseen.config.freeze import Freezer, thaw
from unseen.config.identity import plain

BATCH = "sampler.classes_per_batch=2"


def test_the_name_is_readable_and_ends_with_the_key(tiny_run, tmp_path):
    job = Freezer().freeze([*tiny_run, "seed=3", "ablation=cann"], tmp_path).job
    assert job.folder == tmp_path / f"folder_multi_similarity_cann_seed3_{job.key[:8]}"
    assert not job.folder.exists(), "nothing is written before it is asked for"


@pytest.mark.parametrize(
    "own",
    ["seed=0", "protocol=holdout", "data.exclude=out.txt", "data.on_error=skip", "backbone.weights=w.pth"],
)
def test_the_key_is_that_of_the_run(tiny_run, coloured_tree, tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.txt").write_text("class 0/3.png\n")
    if own == "backbone.weights=w.pth":
        network = timm.create_model(load_config(tiny_run).backbone.model, pretrained=False)
        torch.save(network.state_dict(), "w.pth")
    shutil.copytree(coloured_tree, tmp_path / "tree")
    if own == "data.on_error=skip":
        (tmp_path / "tree" / "class 0" / "0.png").write_bytes(b"no picture")
    typed = [*tiny_run, BATCH, own, "data.root=tree"]
    typed.remove(f"data.root={coloured_tree}")
    frozen = Freezer().freeze(typed, tmp_path / "sweep")
    frozen.save()
    run = build(thaw(frozen.job.folder))
    assert run.job_key == frozen.job.key
    assert run.folder == frozen.job.folder
    assert run.overrides == typed
    assert run.choices["loss"] == "multi_similarity"


@pytest.mark.slow
def test_equal_jobs_have_equal_keys_and_others_have_others(tiny_run, tmp_path):
    freezer = Freezer()

    def key(*own, root=tmp_path):
        return freezer.freeze([*tiny_run, *own], root).job.key

    same = key()
    assert key("pictures=false", "logger=tensorboard", "save_every=9", root=tmp_path / "other") == same
    others = [key(f"{name}") for name in ("seed=1", "loss=margin", "protocol.seed=1", "embedding.size=32")]
    assert len({same, *others}) == 5


def test_a_key_may_follow_another_one_as_the_split_follows_the_seed(tiny_run, tmp_path):
    freezer = Freezer()
    following = [freezer.freeze([*tiny_run, f"seed={n}", "protocol.seed=${seed}"], tmp_path) for n in (3, 4)]
    assert [one.config.protocol.seed for one in following] == [3, 4]
    typed = freezer.freeze([*tiny_run, "seed=4", "protocol.seed=4"], tmp_path)
    assert typed.job.key == following[1].job.key
    assert "protocol.seed=4" in following[1].config.overrides


@pytest.mark.slow
def test_a_data_set_is_read_once_for_many_jobs(tiny_run, tmp_path, monkeypatch):
    from unseen.data.sources import folder

    read, count = folder.read, []
    monkeypatch.setattr(folder, "read", lambda **given: count.append(1) or read(**given))
    monkeypatch.setenv("UNSEEN_TRUSTED", __name__)
    freezer = Freezer()
    for seed in range(5):
        freezer.freeze([*tiny_run, f"seed={seed}"], tmp_path)
    assert len(count) == 1
    freezer.freeze([*tiny_run, "protocol.seed=1"], tmp_path)
    assert len(count) == 2


def test_a_file_that_is_edited_later_changes_nothing_that_waits(tiny_run, tmp_path):
    own = tmp_path / "conf"
    (own / "trainer").mkdir(parents=True)
    choice = own / "trainer" / "mine.yaml"
    choice.write_text("defaults: [default]\nmax_epochs: 3\n")
    typed = [word for word in tiny_run if not word.startswith("trainer.max_epochs")] + ["trainer=mine"]
    frozen = Freezer(config_dir=str(own)).freeze(typed, tmp_path / "sweep")
    frozen.save()
    before = plain(thaw(frozen.job.folder))
    choice.write_text("defaults: [default]\nmax_epochs: 9\n")
    assert plain(thaw(frozen.job.folder)) == before
    assert before["trainer"]["max_epochs"] == 3
    assert Freezer(config_dir=str(own)).freeze(typed, tmp_path / "sweep").job.key != frozen.job.key


def test_a_frozen_config_needs_nothing_of_hydras_and_loses_nothing_on_disk(tiny_run, tmp_path):
    frozen = Freezer().freeze([*tiny_run, "logger=wandb", "optimizer.learning_rates.head=1e-5"], tmp_path)
    frozen.save()
    assert plain(thaw(frozen.job.folder)) == plain(frozen.config)
    text = (frozen.job.folder / "job.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    assert json.loads(json.dumps(OmegaConf.to_container(thaw(frozen.job.folder))))["seed"] == 0


def test_what_cannot_be_read_is_refused_before_anything_runs(tiny_run, tmp_path):
    with pytest.raises(UsageError, match="/nowhere"):
        Freezer().freeze([*tiny_run, "data.root=/nowhere"], tmp_path)
    with pytest.raises(UsageError, match=r"job\.yaml"):
        thaw(tmp_path)
