"""What a user types wrong is answered in words, before any work: the key, the value, the choices."""

import inspect

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from unseen.config.command_line import (
    UsageError,
    building,
    check_overrides,
    check_single,
    config_folder,
    config_of_run,
    help_text,
    load_config,
)
from unseen.config.quoting import quoted
from unseen.config.values import check_devices
from unseen.retrieval import evaluate


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss=tripplet", ["loss=tripplet", "did you mean 'triplet'", "proxy_anchor"]),
        ("ablation=everything", ["ablation=everything", "baseline, cann, custom, full, gdfl"]),
        ("los=triplet", ["los=triplet", "no key 'los'", "did you mean 'loss'", "backbone"]),
        ("trainer.max_epoch=3", ["'trainer.max_epoch'", "did you mean 'max_epochs'", "precision"]),
        ("trainer.max_epochs=three", ["trainer.max_epochs=three", "a whole number", "'three'"]),
        ("embedding.normalize=3", ["embedding.normalize=3", "true or false"]),
        ("seed=[", ["seed=["]),
        ("loss=triplet,tripplet", ["loss=tripplet"]),
        ("trainer.max_epochs=1,three", ["a whole number", "'three'"]),
        ("optimizer.learning_rates.backbone=x", ["optimizer.learning_rates.backbone=x", "a number", "x"]),
        ("optimizer.learning_rates.head=-1", ["'optimizer.learning_rates.head'", "from 0 upwards", "-1"]),
        ("trainer.max_epochs=-3", ["trainer.max_epochs=-3", "from -1 upwards"]),
        ("trainer.max_epochs=-1", ["trainer.max_epochs=-1", "needs an end", "+trainer.max_steps"]),
        ("seed=null", ["seed=null", "a whole number from 0 to 4,294,967,295", "null"]),
        ("seed=1.5", ["seed=1.5", "a whole number"]),
        ("seed=-1", ["seed=-1", "from 0"]),
        ("++seed=-1", ["seed=-1", "from 0"]),
        ("seed=0,1,-1", ["'seed'", "got -1"]),
        ("data.image_size=7", ["data.image_size=7", "from 8"]),
        ("+data.foo=3", ["+data.foo=3", "nothing reads a key 'data.foo'", "cache_size"]),
        ("++date=3", ["++date=3", "did you mean 'data'"]),
        ("adversary.sees=foo", ["adversary.sees=foo", "fused or embedding"]),
        ("metrics.recall_at=3", ["metrics.recall_at=3", "a list"]),
        ("metrics.recall_at=[0]", ["metrics.recall_at=[0]", "from 1"]),
        ("metrics.similarity=l2", ["metrics.similarity=l2", "cosine or euclidean or dot"]),
        ("metrics.nmi=1", ["metrics.nmi=1", "true or false"]),
        ("data.train_scripts=Greek", ["data.train_scripts=Greek", "data.train_scripts=[Greek]"]),
    ],
)
def test_wrong_overrides_are_refused_in_words(override, words):
    with pytest.raises(UsageError) as error:
        check_overrides("train", [override])
    for word in words:
        assert word in str(error.value)
    assert "?." not in str(error.value)


def test_a_key_of_the_user_s_own_may_be_added_for_others_to_refer_to():
    check_overrides("train", ["+rate=0.1", "optimizer.learning_rates.head=${rate}"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no keys"),
        (b"- a\n", "holds no keys"),
        (b"a: [1\nb: 2\n", "is not YAML.*line 2"),
        ("# für\n".encode("latin-1"), "is not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_file_of_the_user_s_own_groups_that_cannot_be_read_is_named(tmp_path, content, words):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_bytes(content)
    for look in (
        lambda: check_overrides("train", ["loss=mine"], str(tmp_path)),
        lambda: help_text("train", str(tmp_path)),
    ):
        with pytest.raises(UsageError, match=rf"loss/mine\.yaml' {words}"):
            look()


@pytest.mark.parametrize("choice", ["logger=tensorboard", "backbone=mobilenetv2"])
def test_a_choice_of_ours_may_hold_an_empty_text_beside_a_user_s_own_groups(tmp_path, choice):
    check_overrides("train", [choice], str(tmp_path))
    with pytest.raises(UsageError, match=r"'logger\.tensorboard\.version' is empty"):
        check_overrides("train", ["logger=tensorboard", "logger.tensorboard.version="], str(tmp_path))


def test_a_choice_that_is_neither_ours_nor_the_user_s_own_is_refused_with_both(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSEEN_TRUSTED", "my")
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("defaults: [_pairs]\nfunction: {_target_: my.Loss}\n")
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "jobs.yaml").write_text("- no configuration of ours\n")
    check_overrides("train", ["loss=mine"], str(tmp_path))
    with pytest.raises(UsageError, match=r"loss=mime.*did you mean 'mine'.*mine, .*triplet"):
        check_overrides("train", ["loss=mime"], str(tmp_path))
    for folder, words in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "loss" / "mine.yaml", "is a file"),
    ):
        with pytest.raises(UsageError, match=f"{folder}: {words}"):
            check_overrides("train", [], str(folder))


@pytest.mark.parametrize(
    ("typed", "missing"), [("data=folder", "data.root"), ("data=csv", "data.path"), ("data=glyphs", None)]
)
def test_a_key_without_a_value_is_named_before_anything_is_built(typed, missing):
    if missing is None:
        assert config_of_run("train", [typed, "hydra.run.dir=here"], None).run_folder.endswith("/here")
        return
    with pytest.raises(UsageError, match=f"{missing} has no value. Give it one: {missing}=<value>"):
        config_of_run("train", [typed], None)


@pytest.mark.parametrize("typed", ["data.root=/a,b", "seed=0,1", "loss=triplet,arcface"])
def test_several_values_are_refused_where_one_run_is_made(typed):
    key, _, value = typed.partition("=")
    with pytest.raises(UsageError, match="several values") as error:
        check_single(["embedding.size=8", typed])
    assert f"{key}='{value}'" in str(error.value)
    check_single([f"{key}='{value}'", "metrics.recall_at=[1,2]"])


def test_several_values_are_refused_in_a_notebook_too():
    with pytest.raises(UsageError, match=r"seed=0,1: several values, and this is one run"):
        load_config(["seed=0,1"])


def test_a_sweep_is_refused_for_a_key_that_only_some_of_its_choices_have():
    overrides = ["loss=triplet,arcface", "ablation=full,baseline", "adversary.strength.maximum=0.1,0.2"]
    with pytest.raises(UsageError, match=r"no 'adversary' with loss=triplet, ablation=baseline"):
        check_overrides("train", overrides)
    check_overrides("train", ["ablation=full,cann", overrides[-1]])
    with pytest.raises(UsageError, match=r"loss.function.margin=0.3: there is no key"):
        check_overrides("train", ["loss=triplet,norm_softmax", "loss.function.margin=0.3"])


@pytest.mark.parametrize(
    "override",
    [
        "loss=triplet",
        "loss=triplet,norm_softmax",
        "trainer.max_epochs=1,2",
        "+trainer.accumulate_grad_batches=2",
        "++data.workers=2",
        "++seed=4",
        "optimizer.learning_rates.head=1e-2",
        "trainer.gradient_clip_val=null",
        "hydra.run.dir=/tmp/x",
        "~callbacks.audit",
        "data.split=fraction",
        "run_folder=elsewhere",
        "metrics.nmi=true",
        "metrics.knn_accuracy_at=[1,5]",
        "seed=${oc.env:HOME}",
        "trainer.max_epochs=0",
    ],
)
def test_right_overrides_pass(override):
    check_overrides("train", [override, "data=folder", "data.root=/images"])


def test_keys_are_checked_in_the_place_that_a_choice_was_given():
    overrides = ["loss=combined", "loss@loss.parts.pairs=triplet"]
    check_overrides("train", [*overrides, "loss.weights.pairs=0.5", "loss.parts.pairs.function.margin=0.3"])
    with pytest.raises(UsageError, match=r"'loss' has the keys: learned_within, miners, parts, weights"):
        check_overrides("train", [*overrides, "loss.function.margin=0.3"])


DATA_SETS = sorted({path.stem for path in (config_folder() / "data").glob("[!_]*.yaml")} - {"collection"})


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("app", ["check", "prepare"])
def test_every_data_set_goes_with_every_command(app, data):
    config = load_config([f"data={data}"], app)
    assert config.data.source._target_.startswith("unseen.data.sources.")


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({}, "~/.cache/unseen/glyphs"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/unseen/glyphs"),
        ({"XDG_CACHE_HOME": "/xdg", "UNSEEN_CACHE": "/mine"}, "/mine/glyphs"),
    ],
)
def test_glyphs_are_kept_with_all_that_is_cached(monkeypatch, environment, root):
    for name in ("XDG_CACHE_HOME", "UNSEEN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_config(["data=glyphs"]).data.root == root


def test_the_sampler_follows_the_loss_unless_it_is_named():
    assert "classes_per_batch" in load_config(["loss=triplet"]).sampler
    assert "batch_size" in load_config(["loss=proxy_anchor"]).sampler
    assert "classes_per_batch" in load_config(["loss=proxy_anchor", "sampler=class_balanced"]).sampler


@pytest.mark.parametrize(
    ("ablation", "fusion", "adversary"),
    [
        ("baseline", "last", "none"),
        ("gdfl", "attention", "none"),
        ("cann", "last", "grl"),
        ("full", "attention", "grl"),
    ],
)
def test_ablations_choose_fusion_and_adversary(ablation, fusion, adversary):
    named = load_config([f"fusion={fusion}", f"adversary={adversary}"])
    chosen = load_config([f"ablation={ablation}"])
    assert chosen.fusion == named.fusion
    assert chosen.adversary == named.adversary


def test_every_metric_has_its_key_and_its_default():
    inputs = {"embeddings", "labels", "gallery", "gallery_labels", "ids", "gallery_ids"}
    signature = inspect.signature(evaluate).parameters
    defaults = {name: value.default for name, value in signature.items() if name not in inputs}
    metrics = OmegaConf.to_container(load_config([]).metrics)
    assert {
        name: tuple(value) if isinstance(value, list) else value for name, value in metrics.items()
    } == defaults


def test_training_without_end_is_refused_unless_its_steps_are_counted():
    check_overrides("train", ["trainer.max_epochs=-1", "+trainer.max_steps=10"])


@pytest.mark.parametrize(
    ("trainer", "gpus", "words"),
    [
        ({"accelerator": "gpu", "devices": 1}, 0, ["trainer.accelerator=gpu", "trainer.accelerator=cpu"]),
        ({"accelerator": "auto", "devices": 9}, 0, ["trainer.devices=9", "2 CPU core"]),
        ({"accelerator": "cpu", "devices": 3}, 4, ["trainer.devices=3", "2 CPU core"]),
        ({"accelerator": "auto", "devices": 9}, 4, ["trainer.devices=9", "4 GPU"]),
        ({"accelerator": "auto", "devices": 4}, 4, []),
        ({"accelerator": "cpu", "devices": 2}, 0, []),
        ({"accelerator": "gpu", "devices": "auto"}, 1, []),
        ({"accelerator": "cpu", "devices": 2, "sync_batchnorm": True}, 4, ["trainer.sync_batchnorm=true"]),
        ({"accelerator": "auto", "devices": 1, "sync_batchnorm": True}, 1, []),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, trainer, gpus, words):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    if not words:
        check_devices(OmegaConf.create(trainer))
        return
    with pytest.raises(UsageError) as error:
        check_devices(OmegaConf.create(trainer))
    for word in words:
        assert word in str(error.value)


def test_what_lightning_refuses_is_said_in_words():
    config = OmegaConf.create({"_target_": "lightning.Trainer", "devices": 0, "accelerator": "cpu"})
    with pytest.raises(UsageError, match="devices=0"), building():
        instantiate(config)


@pytest.mark.parametrize("override", ["data.root=~/x", "data.root=/a=b"])
def test_a_path_that_must_be_quoted_is_shown_quoted(override):
    key, _, value = override.partition("=")
    with pytest.raises(UsageError, match="stands in quotes") as error:
        check_overrides("train", [override])
    assert f"{key}='{value}'" in str(error.value)
    check_overrides("train", ["data=folder", f"{key}='{value}'"])


def test_a_network_that_starts_from_nothing_deploys_what_the_loss_sees_unless_told_otherwise():
    assert load_config(["data=glyphs"]).embedding.readout == "projection"
    assert load_config(["data=glyphs", "loss=norm_softmax"]).embedding.readout == "projection"
    assert load_config(["data=glyphs", "embedding.readout=features"]).embedding.readout == "features"
    assert load_config(["data=folder", "data.root=/images"]).embedding.readout == "features"


ODD = ["josé", "lr=0.1", "a,b", "x (1)", "{a}", "[a]", "a'b", "a~b", "100%", "x y"]


@pytest.mark.parametrize("name", ODD)
def test_the_name_of_a_folder_may_hold_what_the_grammar_of_overrides_needs(name, tmp_path, monkeypatch):
    """Of the working folder, of the run's, and of a user's own groups."""
    (tmp_path / name / "lever").mkdir(parents=True)
    (tmp_path / name / "lever" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    monkeypatch.chdir(tmp_path / name)
    assert load_config(run_folder="here").run_folder == str(tmp_path / name / "here")
    check_overrides("train", ["lever=mine"], str(tmp_path / name))
    assert config_of_run("train", ["lever=mine"], str(tmp_path / name)).seed == 5


@pytest.mark.parametrize("text", [*ODD, "/a/b-1.0", "runs/birds", "1/2", "null", "12", "a\\", "C:\\a\\'b\\"])
def test_a_quoted_text_is_read_as_it_was(text):
    parsed = OverridesParser.create().parse_override(f"key={quoted(text)}").value()
    assert (parsed, isinstance(parsed, str)) == (text, True)
