"""The main command as a user types it: from images to a record, and answers in words to what cannot work."""

import csv
import json
import shlex
import shutil

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from unseen.apps.train import _going_on
from unseen.config.build import build
from unseen.config.command_line import UsageError, building, load_config


@pytest.fixture(scope="session")
def unseen(typed):
    """`unseen(folder, "train", …, NAME=…)`: how it ended."""

    def run(folder, *words, **environment):
        return typed(*words, folder=folder, environment={"WANDB_SILENT": "true", **environment})

    return run


@pytest.fixture(scope="session")
def train(unseen, tiny_run):
    """`train(folder, …)`: how the smallest run ended."""

    def run(folder, *overrides, batch="sampler.classes_per_batch=4", **environment):
        return unseen(folder, "train", *tiny_run, batch, "hydra.run.dir=run", *overrides, **environment)

    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    result = train(folder, "trainer.max_epochs=2", "ablation=full")
    assert result.returncode == 0, result.stderr
    return folder / "run", result


@pytest.mark.slow
def test_a_run_leaves_record_table_checkpoint_and_pictures(finished):
    folder, result = finished
    record = json.loads((folder / "record.json").read_text())
    assert {"unseen", "seen", "unseen_matched", "gap"} <= set(record["metrics"])
    assert 0.25 < record["metrics"]["unseen"]["recall_at_1"] <= 1  # four unseen classes, told apart by colour
    gap = record["metrics"]["seen"]["map_at_r"] - record["metrics"]["unseen_matched"]["map_at_r"]
    assert record["metrics"]["gap"]["map_at_r"] == pytest.approx(gap)
    assert record["choices"]["ablation"] == "full"
    assert record["config"]["data"]["root"] is not None
    assert record["seconds"].keys() == {"measure_untrained", "train", "train_total", "measure", "probe"}
    assert record["images_per_second"] > 0
    assert "Recall@1" in result.stdout
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "manifest.csv").is_file()
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert pictures == {"neighbours.png", "classes.png", "attention.png", "embedding_map.png", "curves.png"}


@pytest.mark.slow
def test_the_audit_of_the_adversary_is_in_the_csv(finished):
    header = (finished[0] / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {
        "train/adversary_accuracy",
        "train/adversary_loss",
        "train/adversary_strength",
        "train/gradient_norm_metric",
        "train/gradient_norm_adversary",
        "train/images_per_second",
        "train/waiting_for_data",
        "probe/seen",
    } <= set(header)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(train, finished, tmp_path):
    first = train(tmp_path, "trainer.max_epochs=2", "+trainer.max_steps=-1", "pictures=false")
    assert first.returncode == 0, first.stderr
    whole = json.loads((finished[0] / "record.json").read_text())["metrics"]
    again = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]
    assert again == whole, "the same seed must give the same numbers"
    stopped = train(tmp_path, "trainer.max_epochs=2", "hydra.run.dir=stopped", "+callbacks.stop._target_="
        "lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=train/loss",
        "+callbacks.stop.stopping_threshold=1e9", "pictures=false",
    )  # fmt: skip
    assert stopped.returncode == 0, stopped.stderr
    resumed = train(tmp_path, "trainer.max_epochs=2", "hydra.run.dir=resumed", "pictures=false",
        f"resume_from={tmp_path / 'stopped' / 'checkpoints' / 'last.ckpt'}",
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    metrics = json.loads((tmp_path / "resumed" / "record.json").read_text())["metrics"]
    assert metrics["unseen"] == pytest.approx(whole["unseen"])


@pytest.mark.slow
def test_a_used_folder_is_refused_and_resuming_in_it_goes_on_with_its_run(train, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    refused = train(tmp_path, "trainer.max_epochs=3")
    assert refused.returncode == 2
    assert "belongs to a run already" in refused.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    words = ["trainer.max_epochs=3", "ablation=full", "resume_from=last", "pictures=false"]
    resumed = train(tmp_path, *words)
    assert resumed.returncode == 0, resumed.stderr
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["train/loss"]]
    assert epochs == ["0", "1", "2"]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"002.ckpt", "last.ckpt"}, "no last-v1.ckpt"


@pytest.mark.slow
def test_multirun_keeps_every_cell_apart_and_wandb_offline_makes_a_run_for_each(unseen, tmp_path, tiny_run):
    result = unseen(
        tmp_path,
        "train",
        *tiny_run,
        "--multirun",
        "ablation=baseline,cann",
        "logger=wandb",
        "pictures=false",
        "sweep_folder=sweep",
        WANDB_API_KEY="",
        NETRC="/nonexistent",
    )
    assert result.returncode == 0, result.stderr
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*/log.txt")]
    assert ["logging offline" in log for log in logs] == [True, True]
    records = sorted((tmp_path / "sweep").glob("*/record.json"))
    assert [json.loads(path.read_text())["choices"]["ablation"] for path in records] == ["baseline", "cann"]
    assert len(list((tmp_path / "sweep").glob("*/wandb/offline-run-*"))) == 2
    assert len({path.read_text() for path in (tmp_path / "sweep").glob("*/dashboard.json")}) == 2


@pytest.mark.slow
def test_holdout_chooses_the_epoch_on_training_classes(train, tmp_path):
    result = train(
        tmp_path,
        "protocol=holdout",
        "protocol.class_fraction=0.5",
        "sampler.classes_per_batch=2",
        "logger=tensorboard",
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert 0 <= record["metrics"]["validation"]["map_at_r"] <= 1
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.classes_per_batch=0"], ["classes_per_batch=0", "at least 1"]),
        (
            ["loss=triplet", "sampler.images_per_class=1"],
            ["images_per_class=1", "at least 2", "proxy_anchor"],
        ),
        (
            ["adversary=masking", "regularizer=introspection"],
            ["adversary=masking replaces 0.5", "regularizer=introspection 1", "leave one of them out"],
        ),
        (["backbone.taps=[layer9]"], ["backbone", "layer9", "layer1, layer2, layer3"]),
        (["backbone.taps=[9]"], ["backbone", "no stage 9"]),
        (
            ["loss=proxy_anchor", "miner=hard", "sampler.batch_size=8"],
            ["miner", "BatchHardMiner", "miner=none"],
        ),
        (["backbone.weights=/nowhere.safetensors"], ["backbone", "/nowhere.safetensors", "no such file"]),
        (["data.root=/nowhere"], ["/nowhere"]),
        (["protocol.held_out_fraction=2"], ["held_out_fraction=2"]),
        (
            ["protocol=holdout", "metrics.map_at_r=false", "sampler.classes_per_batch=2"],
            ["metrics.map_at_r=false", "protocol=holdout", "protocol=fixed"],
        ),
        (["resume_from=/nowhere.ckpt", "sampler.classes_per_batch=4"], ["/nowhere.ckpt"]),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(tmp_path, tiny_run, overrides, words):
    config = load_config([*tiny_run, *overrides], run_folder=tmp_path / "run")
    with pytest.raises(UsageError) as error, building():
        build(config)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_command_that_goes_on_can_be_typed_whatever_the_folder_is_called(tmp_path, monkeypatch):
    folder = tmp_path / "josé's lr=0.1, (a)"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr("sys.argv", ["unseen", "loss=triplet", "hydra.run.dir=elsewhere"])
    _, _, *words = shlex.split(_going_on(folder).splitlines()[-1])
    found = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(words)}
    last = str(folder / "checkpoints" / "last.ckpt")
    assert found == {"loss": "triplet", "hydra.run.dir": str(folder), "resume_from": last}


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "embedding.size=0",
        "trainer.devices=999",
        "trainer.max_epochs=-3",
        "adversary.sees=foo",
        "data.image_size=0",
    ],
)
def test_a_refusal_is_one_message_and_status_2(train, tmp_path, override):
    result = train(tmp_path, override)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {override}")
    assert "Traceback" not in result.stderr


def test_the_command_names_its_commands(unseen, tmp_path):
    listed = unseen(tmp_path, "--help")
    assert listed.returncode == 0
    assert "train" in listed.stdout
    wrong = unseen(tmp_path, "trian")
    assert wrong.returncode == 2
    assert "no command 'trian'" in wrong.stderr


def test_help_explains_the_groups_in_words(unseen, tmp_path):
    result = unseen(tmp_path, "train", "--help")
    assert result.returncode == 0, result.stderr
    for group in ("ablation", "backbone", "fusion", "adversary", "protocol"):
        assert group in result.stdout
    assert "proxy_anchor" in result.stdout
    assert "_pairs" not in result.stdout, "what only other choices include is not for users"


@pytest.mark.slow
def test_a_long_run_looks_at_its_images_first_and_only_once(tmp_path, coloured_tree, tiny_run):
    leaky = tmp_path / "leaky"
    shutil.copytree(coloured_tree, leaky)
    shutil.copy(leaky / "class 0" / "0.png", leaky / "class 7" / "again.png")
    overrides = [*tiny_run, "check_from=0", f"data.root={leaky}", f"data.cache_dir={tmp_path / 'cache'}"]
    overrides += ["sampler.classes_per_batch=4"]
    with pytest.raises(UsageError, match="in training and in test") as error, building():
        build(load_config(overrides, run_folder=tmp_path / "run"))
    quarantine = tmp_path / "run" / "check" / "quarantine.txt"
    assert str(quarantine.parent) in str(error.value)
    # What the report quarantines, data.exclude leaves out: then the run may start.
    overrides += [f"data.exclude={quarantine}"]
    run = build(load_config(overrides, run_folder=tmp_path / "second"))
    assert len(run.data.manifest) == 8 * 8, "the copy in training is left out"
    [report] = (tmp_path / "cache" / "checked").glob("*/report.json")
    written = report.stat().st_mtime_ns
    build(load_config(overrides, run_folder=tmp_path / "second"))
    assert report.stat().st_mtime_ns == written


@pytest.mark.slow
def test_two_processes_started_by_the_console_command_make_one_run(train, tmp_path):
    overrides = ["trainer=ddp", "trainer.devices=2", "logger=wandb"]
    result = train(tmp_path, *overrides, batch="sampler.classes_per_batch=2", WANDB_MODE="offline"
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Everything is in") == 1
    assert (tmp_path / "run" / "record.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("override", ["trainer.max_epochs=0", "metrics.recall_at=[2,4]"])
def test_what_cannot_be_drawn_does_not_end_a_run(train, tmp_path, override):
    result = train(tmp_path, override)
    assert result.returncode == 0, result.stderr
    assert "Everything is in" in result.stdout
    assert (tmp_path / "run" / "pictures" / "neighbours.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_training_is_named_in_one_message(train, coloured_tree, tmp_path, workers):
    tree = tmp_path / "tree"
    shutil.copytree(coloured_tree, tree)
    (tree / "class 0" / "0.png").write_bytes(b"no picture")
    result = train(tmp_path, f"data.root={tree}", f"data.workers={workers}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: Image '")
    assert "0.png" in last
    assert "data.on_error=skip" in last


@pytest.mark.slow
def test_a_checkpoint_of_another_fusion_is_refused_before_training(train, finished, tmp_path):
    last = finished[0] / "checkpoints" / "last.ckpt"
    result = train(tmp_path, f"resume_from={last}", "ablation=cann")
    assert result.returncode == 2
    assert "embedder.fusion" in result.stderr.splitlines()[-1]


def test_a_forgotten_command_is_named(unseen, tmp_path):
    result = unseen(tmp_path, "data.root=/x")
    assert result.returncode == 2
    assert "there is no command 'data.root=/x'" in result.stderr
