"""Batches hold what they say, however they are loaded, and go on where a checkpoint stopped."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from unseen.data.batch import Batch
from unseen.data.images import ImageError, read_image
from unseen.data.manifest import Manifest, ManifestError
from unseen.data.module import DataModule, listed_paths, without
from unseen.data.samplers import ClassBalanced, Shuffled
from unseen.data.split import fixed, holdout
from unseen.data.transforms import Transforms, random_resized_crop, resized_center, sequence

CLASSES, TEST_CLASSES, IMAGES = 5, 2, 8
BASE = Path(__file__).parents[2] / "conf" / "data" / "_base_.yaml"
BALANCED = functools.partial(ClassBalanced, classes_per_batch=3, images_per_class=3)
SHUFFLED = functools.partial(Shuffled, batch_size=6)
FIXED = functools.partial(fixed, seed=0, held_out_fraction=0.25)
HOLDOUT = functools.partial(holdout, seed=0, held_out_fraction=0.25, class_fraction=0.4)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    root = tmp_path / "images"
    paths, labels = [], []
    for label in range(CLASSES + TEST_CLASSES):
        (root / f"class {label}").mkdir(parents=True)
        for index in range(IMAGES):
            generator = np.random.default_rng(100 * label + index)
            pixels = generator.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
            paths.append(f"class {label}/{index}.png")
            labels.append(label)
            Image.fromarray(pixels).save(root / paths[-1])
    roles = np.where(np.array(labels) < CLASSES, "train", "test")
    names = tuple(f"class {label}" for label in range(CLASSES + TEST_CLASSES))
    boxes = np.tile([2, 3, 20, 21], (len(paths), 1))
    return Manifest(root, tuple(paths), np.array(labels), names, roles, boxes=boxes)


@pytest.fixture
def module(manifest: Manifest, tmp_path: Path) -> Callable[..., DataModule]:
    def make(**changes: Any) -> DataModule:
        augmentation = [random_resized_crop(16, (0.3, 1.0)), v2.RandomHorizontalFlip()]
        arguments: dict[str, Any] = {
            "manifest": manifest,
            "protocol": FIXED,
            "sampler": BALANCED,
            "transforms": Transforms(sequence(augmentation), resized_center(16, 1.0)),
            "seed": 3,
            "workers": 0,
            "evaluation_batch_size": 7,
            "exclude": None,
            "on_error": "raise",
            "crop_to_box": False,
            "cache": "none",
            "cache_size": 256,
            "cache_dir": tmp_path / "caches",
        }
        return DataModule(**arguments | changes)

    return make


def epoch_batches(module: DataModule, epoch: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def assert_equal_batches(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_training_batches_hold_augmented_training_images_with_seen_labels(
    module: Callable[..., DataModule],
) -> None:
    data = module(protocol=HOLDOUT)
    batches = epoch_batches(data)
    assert data.num_classes == 3
    assert len(batches) == len(data.train_dataloader()) == 3
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.images.shape == (9, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
        rows = batch.ids.numpy()
        assert np.isin(rows, data.split.train).all()
        assert batch.labels.tolist() == data.split.seen_labels(data.manifest.labels[rows]).tolist()
    seen = {int(row) for batch in batches for row in batch.ids}
    assert seen == set(data.split.train.tolist())


def test_evaluation_holds_the_given_rows_in_order_as_the_transform_makes_them(
    module: Callable[..., DataModule],
) -> None:
    data = module(workers=2)
    rows = np.array([50, 3, 3, *range(10, 20)])
    batches = list(data.loader(rows))
    assert [len(batch.ids) for batch in batches] == [7, 6]
    assert torch.cat([batch.ids for batch in batches]).tolist() == rows.tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == data.manifest.labels[rows].tolist()
    for image, row in zip(torch.cat([batch.images for batch in batches]), rows, strict=True):
        pixels = torch.from_numpy(read_image(data.manifest.absolute(row)).transpose(2, 0, 1).copy())
        assert torch.equal(image, data.transforms.evaluation(pixels))
        np.testing.assert_array_equal(data.image(row), image.permute(1, 2, 0))


def test_validation_classes_are_loaded_where_the_protocol_holds_some_out(
    module: Callable[..., DataModule],
) -> None:
    assert module().val_dataloader() == []
    data = module(protocol=HOLDOUT)
    (loader,) = data.val_dataloader()
    assert [int(row) for batch in loader for row in batch.ids] == data.split.validation.tolist()


@pytest.mark.parametrize(
    ("cache", "accelerated", "wanted"), [("none", False, 3), ("ram", False, 0), ("ram", True, 3)]
)
def test_decoded_images_take_no_workers_from_a_cpu_that_trains(
    module: Callable[..., DataModule],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    accelerated: bool,
    wanted: int,
) -> None:
    monkeypatch.setattr("unseen.data.module.available_cores", lambda: 3)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerated)
    assert module(cache=cache, workers="auto").workers == wanted


def test_workers_and_caches_change_nothing(module: Callable[..., DataModule]) -> None:
    for sampler in (BALANCED, SHUFFLED):
        plain = epoch_batches(module(sampler=sampler), 2)
        assert_equal_batches(plain, epoch_batches(module(sampler=sampler, workers=2), 2))
        for cache in ("ram", "memmap"):
            assert_equal_batches(plain, epoch_batches(module(sampler=sampler, cache=cache, workers=2), 2))


def test_loading_neither_hears_nor_moves_global_generators(module: Callable[..., DataModule]) -> None:
    torch.manual_seed(1)
    first = epoch_batches(module())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_equal_batches(first, epoch_batches(module()))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_differs_between_epochs_seeds_and_draws_of_one_image(
    module: Callable[..., DataModule], manifest: Manifest
) -> None:
    few = manifest.select([0, 1, 8, 9, *range(40, 56)])  # two images a class, drawn six times
    make = functools.partial(
        module,
        manifest=few,
        protocol=functools.partial(fixed, seed=0, held_out_fraction=0.0),
        sampler=functools.partial(ClassBalanced, classes_per_batch=2, images_per_class=6),
    )
    data = make()
    (batch,) = epoch_batches(data)
    same = batch.images[batch.ids == 0]
    assert len(same) == 3
    assert len({image.numpy().tobytes() for image in same}) == 3
    others = [epoch_batches(data, 1)[0], epoch_batches(make(seed=4))[0]]
    for other in others:
        assert not {image.numpy().tobytes() for image in same} & {
            image.numpy().tobytes() for image in other.images[other.ids == 0]
        }


def test_boxes_are_cut_only_when_asked(module: Callable[..., DataModule]) -> None:
    for cache in ("none", "ram", "memmap"):
        assert module(cache=cache).images[0].shape == (20, 24, 3)
        assert module(cache=cache, crop_to_box=True).images[0].shape == (17, 18, 3)


def test_rows_that_boxes_alone_tell_apart_want_their_boxes(
    module: Callable[..., DataModule], manifest: Manifest
) -> None:
    paths = (*manifest.paths[:1], *manifest.paths[:1], *manifest.paths[2:])
    boxes = np.tile([2, 3, 20, 21], (len(paths), 1))
    boxes[1] = (0, 0, 5, 5)
    twice = replace(manifest, paths=paths, boxes=boxes)
    with pytest.raises(ValueError, match=r"1 pictures have several rows, such as 'class 0/0\.png'"):
        module(manifest=twice)
    assert module(manifest=twice, crop_to_box=True).images[1].shape == (5, 5, 3)


def test_worker_processes_get_a_small_copy(module: Callable[..., DataModule]) -> None:
    data = module(cache="memmap")
    for loader in (data.train_dataloader(), data.loader(data.split.query)):
        assert len(pickle.dumps(loader.dataset)) < 20_000


def spoil(manifest: Manifest, *rows: int) -> None:
    for row in rows:
        manifest.absolute(row).write_bytes(b"no image")


@pytest.mark.parametrize("cache", ["none", "ram", "memmap"])
def test_unreadable_images_are_listed_counted_and_left_out(
    module: Callable[..., DataModule], manifest: Manifest, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(manifest, 2, 45)
    for _ in range(2):  # from the file the second time
        caplog.clear()
        data = module(on_error="skip", cache=cache)
        assert len(data.manifest) == len(manifest) - 2
        assert set(manifest.paths) - set(data.manifest.paths) == {"class 0/2.png", "class 5/5.png"}
        assert "class 0/2.png" in caplog.text
        assert f"2 of {len(manifest)} images cannot be read and are left out" in caplog.text
        rows = np.arange(len(data.manifest))
        images = torch.cat([batch.images for batch in data.loader(rows)])
        for image, row in zip(images, rows, strict=True):
            pixels = torch.from_numpy(read_image(data.manifest.absolute(row)).transpose(2, 0, 1).copy())
            assert torch.equal(image, data.transforms.evaluation(pixels))
        assert len(epoch_batches(data)) > 0


@pytest.mark.parametrize("cache", ["none", "ram", "memmap"])
def test_unreadable_images_stop_the_run_by_default(
    module: Callable[..., DataModule], manifest: Manifest, cache: str
) -> None:
    spoil(manifest, 2)
    with pytest.raises(ImageError, match=r"class 0/2\.png.*data\.on_error=skip"):
        list(module(cache=cache).loader(np.arange(len(manifest))))
    if cache == "memmap":
        module(cache=cache, on_error="skip")
        with pytest.raises(ImageError, match=r"1 of 56 images cannot be read\. First: .*class 0/2\.png"):
            module(cache=cache)


def test_a_class_that_skipping_empties_leaves_training(
    module: Callable[..., DataModule], manifest: Manifest
) -> None:
    spoil(manifest, *range(8, 16))
    data = module(on_error="skip")
    assert data.num_classes == CLASSES - 1
    assert {int(label) for batch in epoch_batches(data) for label in batch.labels} == set(range(4))


def test_excluded_paths_are_left_out(
    module: Callable[..., DataModule], manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = tmp_path / "exclude.txt"
    listing.write_text("# broken\r\nclass 0/2.png\r\n\r\n  \nclass 6/0.png\nclass 9/9.png\n", newline="")
    data = module(exclude=listing)
    assert set(manifest.paths) - set(data.manifest.paths) == {"class 0/2.png", "class 6/0.png"}
    assert "1 of the 3 paths" in caplog.text
    assert "class 9/9.png" in caplog.text
    assert without(manifest, listed_paths(None, manifest)) is manifest
    spoil(manifest, 2)
    assert len(module(exclude=listing, cache="ram").manifest) == len(manifest) - 2


def test_paths_that_look_like_comments_or_hold_line_ends_can_be_excluded(
    manifest: Manifest, tmp_path: Path
) -> None:
    names = ("#1/a.png", "# 1/a.png", "class\x0c0/\r\u2028.png")
    odd = replace(manifest, paths=(*names, *manifest.paths[3:]))
    listing = tmp_path / "exclude.txt"
    listing.write_text("# broken\n" + "".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    listed = listed_paths(listing, odd)
    assert listed == names
    assert without(odd, listed).paths == manifest.paths[3:]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": "disk"}, "data.cache=disk: choices are none, ram, memmap"),
        ({"on_error": "ignore"}, "data.on_error=ignore: choices are raise, skip"),
        ({"workers": -1}, "data.workers=-1: wanted 'auto' or a number"),
        ({"workers": "all"}, "data.workers='all': wanted 'auto' or a number"),
        ({"evaluation_batch_size": 0}, "data.evaluation_batch_size=0: wanted at least 1"),
        ({"exclude": "/nowhere.txt"}, "data.exclude=/nowhere.txt: no such file"),
        ({"cache": "ram", "cache_size": 15}, "data.cache_size=15: .* 16 pixels, .* at least 16"),
        (
            {
                "cache": "ram",
                "cache_size": 17,
                "transforms": Transforms(nn.Identity(), resized_center(16, 1.1)),
            },
            "data.cache_size=17: .* 18 pixels, .* at least 18",
        ),
        ({"sampler": functools.partial(Shuffled, batch_size=31)}, "sampler.batch_size=31: .* 1 and 28"),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_image_is_read(
    module: Callable[..., DataModule], manifest: Manifest, changes: dict[str, Any], words: str
) -> None:
    spoil(manifest, *range(len(manifest)))
    with pytest.raises(ValueError, match=words):
        module(**changes)


def test_excluding_a_whole_side_is_an_error(module: Callable[..., DataModule], tmp_path: Path) -> None:
    listing = tmp_path / "exclude.txt"
    listing.write_text("\n".join(f"class {label}/{i}.png" for label in (5, 6) for i in range(IMAGES)))
    with pytest.raises(ManifestError, match="no query images"):
        module(exclude=listing)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "~/.cache/unseen"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/unseen"),
        ({"XDG_CACHE_HOME": "/xdg", "UNSEEN_CACHE": "/mine"}, "/mine"),
    ],
)
def test_the_config_names_every_loading_argument_and_a_folder_of_the_user(
    module: Callable[..., DataModule],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    folder: str,
) -> None:
    for name in ("XDG_CACHE_HOME", "UNSEEN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.to_container(OmegaConf.load(BASE), resolve=True)
    assert isinstance(config, dict)
    assert config.pop("cache_dir") == folder
    assert config.pop("image_size") == 224
    module(**config)


@pytest.mark.parametrize("protocol", ["fixed", "holdout", "folds"])
@pytest.mark.parametrize(
    ("sampler", "sizes"),
    [("class_balanced", {"classes_per_batch": 2, "images_per_class": 2}), ("shuffled", {"batch_size": 3})],
)
def test_groups_of_the_config_fit(
    module: Callable[..., DataModule], protocol: str, sampler: str, sizes: dict[str, int]
) -> None:
    with initialize_config_dir(str(BASE.parents[1]), version_base=None):
        config = compose(overrides=[f"+protocol={protocol}", f"+sampler={sampler}"])
    data = module(
        protocol=instantiate(config.protocol), sampler=functools.partial(instantiate(config.sampler), **sizes)
    )
    assert (len(data.split.validation) > 0) == (protocol != "fixed")
    assert len(data.split.held_out) >= 2
    assert len(epoch_batches(data)) > 0


class Witness(lightning.LightningModule):
    """Notes the ids and the pixels of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, int, tuple[int, ...], int]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append((self.current_epoch, index, tuple(batch.ids.tolist()), int(batch.images.sum())))
        return self.layer(batch.labels[:1, None].float()).mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data: DataModule, callbacks: list[Any], ckpt_path: Path | None = None, **options: Any) -> Witness:
    witness = Witness()
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(callbacks),
        **options,
    )
    trainer.fit(witness, datamodule=data, ckpt_path=ckpt_path)
    return witness


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "protocol", "options"),
    [
        (0, FIXED, {}),
        (2, FIXED, {}),
        (0, HOLDOUT, {}),
        (0, HOLDOUT, {"val_check_interval": 2}),
        (0, FIXED, {"limit_train_batches": 3}),
        (0, FIXED, {"accumulate_grad_batches": 2}),
        (0, FIXED, {"overfit_batches": 2}),
        (0, FIXED, {"overfit_batches": 1.0}),
    ],
)
@pytest.mark.parametrize("sampler", [BALANCED, SHUFFLED])
def test_a_resumed_run_sees_exactly_what_an_uninterrupted_one_sees(
    module: Callable[..., DataModule],
    tmp_path: Path,
    workers: int,
    protocol: Any,
    options: dict[str, Any],
    sampler: Any,
) -> None:
    """From a checkpoint after any step, at the end of any epoch, and after any validation."""
    data = functools.partial(module, workers=workers, protocol=protocol, sampler=sampler)
    steps = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    epochs = ModelCheckpoint(tmp_path / "epochs", "{step}", save_on_train_epoch_end=True, save_top_k=-1)
    validations = ModelCheckpoint(tmp_path / "checks", "{step}", save_on_train_epoch_end=False, save_top_k=-1)
    whole = fit(data(), [steps, epochs], limit_val_batches=1, **options).seen
    assert fit(data(), [validations], limit_val_batches=1, **options).seen == whole
    assert len(whole) == 3 * len({index for _, index, _, _ in whole}) >= 6
    repeats = 3 if "overfit_batches" in options else 1
    assert len({ids for _, _, ids, _ in whole}) * repeats == len(whole), "no two batches are alike"
    steps_of_epoch = len(whole) // 3
    accumulated = options.get("accumulate_grad_batches", 1)
    for checkpoint in sorted(tmp_path.glob("*/*.ckpt")):
        if workers and checkpoint.stem not in ("step=2", "step=5"):
            continue  # starting workers takes long
        step = int(checkpoint.stem.removeprefix("step="))
        epochs, rest = divmod(step, -(-steps_of_epoch // accumulated))
        done = epochs * steps_of_epoch + rest * accumulated
        seen = fit(data(), [], checkpoint, limit_val_batches=1, **options).seen
        assert seen == whole[done:], checkpoint


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_may_be_interrupted_again_and_again(module: Callable[..., DataModule], tmp_path: Path) -> None:
    """Each checkpoint here was saved by a run that itself was resumed from the one before.

    After the last batch of an epoch it is the one saved at the epoch's end: Lightning 2.6 miscounts epochs
    when a run is resumed twice and the first time was from just before an epoch's end.
    """
    whole = fit(module(), []).seen
    assert len(whole) == 12
    before: Path | None = None
    for step in range(1, len(whole)):
        folder = tmp_path / str(step)
        steps = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        epochs = ModelCheckpoint(folder / "end", "{step}", save_on_train_epoch_end=True, save_top_k=-1)
        assert fit(module(), [steps, epochs], before).seen == whole[step - 1 :]
        before = folder / ("end" if step % 4 == 0 else "") / f"step={step}.ckpt"


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_from_within_an_epoch_of_other_batches_is_refused(
    module: Callable[..., DataModule], tmp_path: Path
) -> None:
    steps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    epochs = ModelCheckpoint(tmp_path / "epochs", "{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    fit(module(), [steps, epochs])
    assert len(module().train_dataloader()) == 4
    other = functools.partial(module, sampler=functools.partial(Shuffled, batch_size=5))
    with pytest.raises(ValueError, match=r"stopped at batch 2 of 4; epochs of this run have 5 batches"):
        fit(other(), [], tmp_path / "step=2.ckpt")
    # At the end of an epoch all is well.
    assert [turn[:2] for turn in fit(other(), [], tmp_path / "epochs" / "epoch=0.ckpt").seen] == [
        (epoch, index) for epoch in (1, 2) for index in range(5)
    ]


def test_augmentation_leaves_the_generators_of_gpus_alone(
    module: Callable[..., DataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeding them for each image would repeat the dropout of the network that trains there."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    epoch_batches(module())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_validation_images_in_equally_many_batches(
    module: Callable[..., DataModule], world_size: int
) -> None:
    data = module(protocol=HOLDOUT, evaluation_batch_size=3)
    shares = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        (loader,) = data.val_dataloader()
        shares.append([batch.ids for batch in loader])
    assert len({tuple(map(len, share)) for share in shares}) == 1
    ids = torch.cat([torch.cat(share) for share in shares])
    assert sorted(set(ids.tolist())) == data.split.validation.tolist()
    assert len(ids) - len(data.split.validation) < world_size
