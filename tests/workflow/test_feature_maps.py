"""A frozen backbone: training from kept maps is training through the network; maps are computed once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from lightning import Callback

import unseen
from unseen.config.build import build
from unseen.config.command_line import load_config
from unseen.config.export import export
from unseen.data.images import read_image
from unseen.deploy.bundle import load
from unseen.nn.backbone import Backbone
from unseen.workflow.run import Run, execute

Made = Callable[..., Run]
EPOCHS = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of weights of the same network."""
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = timm.create_model("resnet10t", num_classes=0)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
        files.append(tmp_path_factory.mktemp("weights") / "weights.pth")
        torch.save(network.state_dict(), files[-1])
    return files


@pytest.fixture
def made(tiny_run: list[str], weights: list[Path], tmp_path: Path) -> Made:
    def make(*overrides: str, folder: str = "run") -> Run:
        own = [
            *(word for word in tiny_run if not word.startswith("optimizer")),
            f"backbone.weights={weights[0]}",
            "backbone.frozen=true",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"trainer.max_epochs={EPOCHS}",
            "sampler=class_balanced",
            "sampler.classes_per_batch=4",
            "pictures=false",
        ]
        typed = {word.split("=", 1)[0]: word for word in [*own, *overrides]}
        return build(load_config(list(typed.values()), run_folder=str(tmp_path / folder)))

    return make


def files(tmp_path: Path) -> dict[str, int]:
    """Files of maps, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "maps").glob("*.maps")}


def metrics(run: Run) -> dict[str, float]:
    record = execute(run)
    assert record is not None
    return {f"{split}/{name}": value for split, one in record.metrics.items() for name, value in one.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "overrides",
    [
        ["ablation=full", "loss=norm_softmax", "adversary.silent_epochs=0", "sampler=class_balanced"],
        ["ablation=baseline", "embedding.readout=projection", "memory=cross_batch"],
        [
            "backbone.taps=late_and_final",
            "protocol=holdout",
            "protocol.class_fraction=0.5",
            "miner=semi_hard",
        ],
    ],
    ids=["adversary and proxies", "last layer and memory", "validation and miner"],
)
def test_training_from_maps_is_training_through_the_network_without_augmentation(
    made: Made, overrides: list[str]
) -> None:
    """The oracle has no maps: all its epochs are warm-up, whose backbone rests."""
    if "protocol=holdout" in overrides:
        overrides = [*overrides, "sampler.classes_per_batch=2"]
    oracle = made(
        *overrides, "backbone.frozen=false", f"optimizer.frozen_backbone_epochs={EPOCHS}",
        "transforms.train=${transforms.evaluation}", folder="oracle",
    )  # fmt: skip
    run = made(*overrides)
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    wanted, found = metrics(oracle), metrics(run)
    assert found == pytest.approx(wanted, abs=1e-4, nan_ok=True)
    trained = run.learner.state_dict()
    for name, value in oracle.learner.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4)
    at_rest = [name for name in trained if torch.equal(trained[name], before[name])]
    backbone = [name for name in trained if name.startswith("embedder.backbone.")]
    assert set(backbone) <= set(at_rest)
    assert "embedder.projection.weight" not in at_rest


class Seen(Callback):
    """How many images the backbone was given, and which groups learned."""

    def __init__(self, run: Run) -> None:
        self.images = 0
        self.groups: set[str] = set()
        run.trainer.callbacks.append(self)  # type: ignore[attr-defined]
        run.learner.embedder.backbone.register_forward_pre_hook(self.count)

    def count(self, module: Any, inputs: tuple[torch.Tensor]) -> None:
        self.images += len(inputs[0])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.groups = {group["name"] for group in trainer.optimizers[0].param_groups}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_of_other_seeds_losses_and_parts_share_the_maps(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = made("protocol=holdout", "protocol.class_fraction=0.5", "sampler.classes_per_batch=2",
                 "evaluation.test=false", folder="tuned")  # fmt: skip
    execute(tuned)
    of_training_classes = files(tmp_path)
    assert len(of_training_classes) == 1, "test classes are not looked at"
    run = made("seed=1")
    seen = Seen(run)
    record = execute(run)
    assert record is not None
    assert files(tmp_path).items() > of_training_classes.items()
    assert seen.images == len(run.data.split.query) + 1, (
        "all test images, and one that says how large maps are"
    )
    assert seen.groups == {"head", "head_no_decay"}
    assert record.seconds["feature_maps"] > 0
    assert record.parameters == sum(
        one.numel() for one in run.learner.embedder.parameters() if one.requires_grad
    )
    capsys.readouterr()
    other = made("seed=2", "loss=proxy_anchor", "ablation=baseline", folder="other")
    seen, before = Seen(other), files(tmp_path)
    execute(other)
    assert (seen.images, files(tmp_path)) == (1, before)
    size = sum(path.stat().st_size for path in (tmp_path / "cache" / "maps").glob("*.maps"))
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(
        "backbone.frozen=true: feature maps of 64 images, prepared as for evaluation (nothing is"
    )
    assert f"take {size / 2**20:.1f} MiB" in said


def key(run: Run) -> tuple[str, str]:
    return run.learner.embedder.backbone.fingerprint(), run.data.fingerprint(run.data.split.train)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "is_another"),
    [
        (["seed=3", "loss=triplet", "fusion=last", "optimizer.learning_rates.head=0.1"], False),
        (["transforms=strong", "transforms.evaluation.resize=1.0", "data.evaluation_batch_size=7"], False),
        (["transforms.evaluation.resize=1.5"], True),
        (["backbone.taps=[layer2]"], True),
        (["backbone.mean=[0.5,0.5,0.5]"], True),
        (["backbone.options={output_stride:16}"], True),
        (["data.image_size=48"], True),
        (["data.cache=ram", "data.cache_size=36"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_maps_are_named_by_all_that_determines_them(
    made: Made, overrides: list[str], is_another: bool
) -> None:
    assert (key(made(*overrides)) != key(made())) == is_another


@pytest.mark.slow
def test_maps_of_other_weights_or_of_images_that_changed_are_others(
    made: Made, weights: list[Path], coloured_tree: Path, tmp_path: Path
) -> None:
    backbone, images = key(made())
    of_other_weights = key(made(f"backbone.weights={weights[1]}"))
    assert of_other_weights[0] != backbone
    assert of_other_weights[1] == images
    tree = tmp_path / "tree"
    shutil.copytree(coloured_tree, tree)
    copied = made(f"data.root={tree}")
    before = copied.data.fingerprint(copied.data.split.train)
    last = tree / copied.data.manifest.paths[copied.data.split.train[1]]
    os.utime(last, ns=(0, 0))
    assert copied.data.fingerprint(copied.data.split.train) != before


@pytest.fixture(scope="module")
def arrays(coloured_tree: Path) -> tuple[np.ndarray, np.ndarray]:
    paths = sorted(coloured_tree.glob("*/*.png"))
    return np.stack([read_image(path) for path in paths]), np.repeat(np.arange(8), 8)


def test_arrays_are_named_by_their_pixels(
    made: Made, arrays: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made().data
    pixels = arrays[0].copy()
    monkeypatch.setattr(data, "images", pixels)
    monkeypatch.setattr(data, "reads_files", False)
    rows = np.arange(64)
    before = data.fingerprint(rows)
    assert data.fingerprint(rows) == before
    pixels[37, 20, 20, 0] ^= 64
    assert data.fingerprint(rows) != before
    assert data.fingerprint(rows[38:]) == data.fingerprint(rows[38:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_interrupted_goes_on_from_the_same_maps(
    made: Made, weights: list[Path], tmp_path: Path
) -> None:
    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyError("stopped")

    whole = metrics(made(folder="whole"))
    stopped = made(folder="stopped")
    stopped.trainer.callbacks.insert(0, Stops())  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="stopped"):
        execute(stopped)
    checkpoint = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    resumed = made(f"resume_from={checkpoint}", folder="resumed")
    assert metrics(resumed) == pytest.approx(whole, abs=1e-5, nan_ok=True)
    with pytest.raises(ValueError, match=r"the frozen backbone of the checkpoint has other weights"):
        made(f"resume_from={checkpoint}", f"backbone.weights={weights[1]}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_was_trained_from_maps_is_exported_and_embeds_images(
    made: Made, coloured_tree: Path, tmp_path: Path
) -> None:
    run = made()
    found = metrics(run)
    model = load(export(tmp_path / "run"))
    rows = run.data.split.query
    embeddings = model.embed([coloured_tree / run.data.manifest.paths[row] for row in rows])
    again = unseen.evaluate(embeddings, run.data.manifest.labels[rows]).metrics
    assert again["map_at_r"] == pytest.approx(found["unseen/map_at_r"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("of", ["embedder", "fit"])
def test_the_library_freezes_too(
    weights: list[Path], arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path, of: str
) -> None:
    frozen = ["backbone.frozen=true"]
    given = {"weights": weights[0], "size": 8, "image_size": 32}
    model = unseen.embedder("resnet10t", **given, overrides=frozen if of == "embedder" else [])
    pixels, labels = arrays
    data = unseen.dataset(pixels, labels=labels, unseen_classes=[4, 5, 6, 7])
    own = ["sampler=class_balanced", "sampler.classes_per_batch=4", "data.workers=0", "pictures=false"]
    own += [f"data.cache_dir={tmp_path / 'cache'}", *frozen]
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    run = unseen.fit(model, data, epochs=1, folder=tmp_path / "run", overrides=own)
    assert len(files(tmp_path)) == 2
    assert all(torch.equal(value, before[name]) for name, value in run.model.backbone.state_dict().items())
    again = unseen.evaluate(run.embed(pixels[32:]), labels[32:]).metrics
    assert again["map_at_r"] == pytest.approx(run.metrics["unseen"]["map_at_r"], abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.frozen_backbone_epochs=1"], r"optimizer\.frozen_backbone_epochs=1: .* never learns"),
        (
            ["optimizer=paper"],
            r"optimizer\.frozen_backbone_epochs=1: .* Set optimizer\.frozen_backbone_epochs=0",
        ),
        (["optimizer.learning_rates.backbone=1e-4"], r"with optimizer\.learning_rates\.backbone=1e-4"),
        (["ablation=cann"], r"GradientReversal.*fusion=attention.*adversary=none"),
    ],
)
def test_what_only_a_backbone_that_learns_has_is_refused(
    made: Made, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        made(*overrides)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["ablation=baseline"], "embedding.readout=projection"),
        (["backbone.weights=none"], "stays random"),
        (["ablation=baseline", "embedding.readout=projection"], None),
        ([], None),
    ],
)
def test_what_is_seldom_meant_is_warned_of(
    made: Made, caplog: pytest.LogCaptureFixture, overrides: list[str], word: str | None
) -> None:
    made(*overrides)
    warned = [message for message in caplog.messages if "backbone.frozen=true" in message]
    assert [word in message for message in warned] == ([] if word is None else [True])


def test_a_backbone_of_which_nothing_learns_is_warned_of_alike(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    made("backbone.frozen=false", "trainable=none", "ablation=baseline")
    assert any("trainable=none with embedding.readout=features" in one for one in caplog.messages)


def test_a_frozen_backbone_stays_frozen_whatever_happens_around_it(made: Made) -> None:
    embedder = made().learner.embedder
    assert isinstance(embedder.backbone, Backbone)
    embedder.train()
    embedder.choose_trainable([name for name, _ in embedder.backbone.named_parameters()])
    assert not any(part.training for part in embedder.backbone.modules())
    assert not any(parameter.requires_grad for parameter in embedder.backbone.parameters())
    assert embedder.fusion.training
