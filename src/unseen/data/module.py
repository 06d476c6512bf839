"""Joins manifest, split, sampler, transforms and cache into loaders."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from unseen.data import cache as caches
from unseen.data.batch import Batch
from unseen.data.images import Files, ImageError, Images, Pixels, available_cores, in_order
from unseen.data.manifest import Manifest
from unseen.data.maps import MapFile, StoredMaps
from unseen.data.samplers import Draw, ResumableBatchSampler
from unseen.data.split import Split
from unseen.data.transforms import Transforms
from unseen.data.workers import Loader, start_worker

log = logging.getLogger(__name__)

Item = tuple[Tensor, int, int]

PREPARED = 16
"""About so many images are looked at to tell one preparation from another."""


class TrainingImages(Dataset[Item]):
    """Augmented images of the training classes, by what a sampler draws.

    Args:
        images: row of the manifest → `(H, W, 3)` uint8.
        rows: `(N,)` rows of the manifest.
        labels: `(N,)` seen labels.
        transform: `(3, H, W)` uint8 → `(3, S, S)` uint8.
        seed: of the augmentation, which is a pure function of seed, epoch and place in the epoch.
    """

    def __init__(
        self,
        images: Images,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        transform: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.images = images
        self.rows = rows
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Item:
        position, epoch, place = draw
        row = int(self.rows[position])
        image = _channels_first(self.images[row])
        with _random(self.seed, epoch, place):
            image = self.transform(image)
        return image, int(self.labels[position]), row


class PlainImages(Dataset[Item]):
    """Images as evaluation sees them, with the manifest's labels.

    Args:
        images: row of the manifest → `(H, W, 3)` uint8.
        rows: `(N,)` rows of the manifest.
        labels: `(N,)` labels of the manifest.
        transform: `(3, H, W)` uint8 → `(3, S, S)` uint8.
    """

    def __init__(
        self,
        images: Images,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.images = images
        self.rows = rows
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Item:
        row = int(self.rows[position])
        return self.transform(_channels_first(self.images[row])), int(self.labels[position]), row


class MapsOfImages(Dataset[Item]):
    """Stored feature maps in place of images, a batch at a time.

    Args:
        file: has the maps.
        names: of the maps of a batch, in their order.
        rows: `(N,)` rows of the manifest.
        labels: `(N,)`.
    """

    def __init__(
        self, file: MapFile, names: Sequence[str], rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        self.file = file
        self.names = names
        self.rows = rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, drawn: Sequence[int | Draw]) -> Batch:
        """Positions, or what a sampler draws."""
        positions = np.array([one if isinstance(one, int) else one[0] for one in drawn])
        rows = self.rows[positions]
        maps = self.file.maps(rows)
        labels, ids = torch.from_numpy(self.labels[positions]), torch.from_numpy(rows)
        return Batch(None, labels, ids, tuple(maps[name] for name in self.names))


class ResumableLoader(Loader[Item]):
    """A loader whose position is in the checkpoint: a resumed epoch goes on with the next batch."""

    batch_sampler: ResumableBatchSampler
    _given = 0
    _resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that nothing is drawn before the first batch is asked for: Lightning makes the
        # iterator of a resumed epoch before it tells the sampler which epoch that is.
        resumed, self._resumed = self._resumed, None
        goes_on = resumed is not None and resumed["epoch"] == self.batch_sampler.epoch
        self._given = self.batch_sampler.start = resumed["given"] if resumed and goes_on else 0
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches were given, and how many it has."""
        return {"epoch": self.batch_sampler.epoch, "given": self._given, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration there, if it is of the same epoch.

        Raises:
            ValueError: the checkpoint is from the middle of an epoch that was cut into other batches.
        """
        if state["batches"] != len(self) and 0 < state["given"] < state["batches"]:
            raise ValueError(
                f"The checkpoint stopped at batch {state['given']} of {state['batches']}; epochs of this run "
                f"have {len(self)} batches. Resume with the same data, sampler.* and number of devices."
            )
        self._resumed = state


class DataModule(LightningDataModule):
    """Loaders for training, validation and any rows of a manifest.

    Args:
        manifest: the images.
        protocol: manifest → split.
        sampler: called with `labels`, `seed`, `rank` and `world_size`.
        transforms: for training and evaluation.
        seed: of order and augmentation.
        workers: processes that prepare images; 0 none. `auto` takes the cores that are there, at most eight,
            but none for decoded images where training is on a CPU, of which workers take more than they give.
        evaluation_batch_size: images a batch where nothing is learned.
        exclude: a text file of paths to leave out; see `listed_paths`.
        on_error: what images that cannot be read do: `raise` stops; `skip` finds them before training, lists
            them and takes them out of the manifest (they are never replaced by other images).
        crop_to_box: cut images to the manifest's boxes.
        cache: `none` decodes images each time; `ram` once a run, `memmap` once for all runs.
        cache_size: pixels of the shorter side that cached images are shrunk to.
        cache_dir: folder of all caches; memory-mapped ones lie in its `decoded`.
        images: of the manifest's rows, where they are no files (see `unseen.data.collection`); those cannot
            be memory-mapped, and have no boxes.

    Attributes:
        maps: of a frozen backbone, once they are computed: batches then carry them in place of images.

    Raises:
        ValueError: a value is not among its choices, or the sampler cannot draw from the split.
        ImageError: an image cannot be read (when all are decoded beforehand, and `on_error` is `raise`).
    """

    def __init__(
        self,
        manifest: Manifest,
        protocol: Callable[[Manifest], Split],
        sampler: Callable[..., ResumableBatchSampler],
        transforms: Transforms,
        *,
        seed: int,
        workers: int | str,
        evaluation_batch_size: int,
        exclude: str | Path | None,
        on_error: str,
        crop_to_box: bool,
        cache: str,
        cache_size: int,
        cache_dir: str | Path,
        images: Images | None = None,
    ) -> None:
        super().__init__()
        _choose("data.on_error", on_error, ("raise", "skip"))
        _choose("data.cache", cache, tuple(caches.OPEN))
        if evaluation_batch_size < 1:
            raise ValueError(f"data.evaluation_batch_size={evaluation_batch_size}: wanted at least 1.")
        if isinstance(images, Files):  # as boxes and caches want them
            images = None
        self.reads_files = images is None
        if images is not None:
            _check_images(images, manifest, cache)
        self.transforms = transforms
        self.seed = seed
        self.workers = _workers(workers, decoded=cache != "none" or not self.reads_files)
        self.evaluation_batch_size = evaluation_batch_size
        self._protocol = protocol
        self._sampler = sampler
        self.excluded = listed_paths(exclude, manifest)
        if not crop_to_box:
            _check_whole(manifest)
        self._take(without(manifest, self.excluded))  # refuses what cannot work before anything slow
        if cache != "none":
            self._check_size(cache_size)
        stored: Images = (
            Files(self.manifest, crop_to_box=crop_to_box)
            if images is None
            else caches.Selected(images, _rows_without(manifest, self.excluded))
        )
        self.images: Images = caches.OPEN[cache](
            stored,
            short_side=cache_size,
            keep_going=on_error == "skip",
            folder=Path(cache_dir).expanduser() / "decoded",
        )
        self.crop_to_box = crop_to_box
        self.maps: StoredMaps | None = None
        if self.images.problems:
            self._leave_out(self.images.problems, on_error)

    def _take(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.split = self._protocol(manifest)
        self._make_sampler()

    def _check_size(self, cache_size: int) -> None:
        needed = self.transforms.evaluated_side
        if cache_size < needed:
            raise ValueError(
                f"data.cache_size={cache_size}: evaluation resizes images to {needed} pixels, so cached ones "
                f"would be blown up. Choose at least {needed}, or set data.cache=none."
            )

    def _leave_out(self, problems: dict[int, str], on_error: str) -> None:
        if on_error == "raise":
            first = next(iter(problems.values()))
            raise ImageError(f"{len(problems)} of {len(self.manifest)} images cannot be read. First: {first}")
        for problem in problems.values():
            log.warning("Left out: %s", problem)
        log.warning("%d of %d images cannot be read and are left out.", len(problems), len(self.manifest))
        rows = np.setdiff1d(np.arange(len(self.manifest)), list(problems))
        self.images = caches.Selected(self.images, rows)
        self._take(self.manifest.select(rows))

    @property
    def num_classes(self) -> int:
        """Seen classes, C."""
        return self.split.num_classes

    @property
    def sees_centres(self) -> bool:
        """Whether training batches depend on where the classes lie; see `ResumableBatchSampler.centres`."""
        return self._make_sampler().sees_centres

    def image(self, row: int) -> Pixels:
        """One image as evaluation sees it, `(S, S, 3)` uint8, for pictures."""
        prepared: Tensor = self.transforms.evaluation(_channels_first(self.images[row]))
        return prepared.permute(1, 2, 0).numpy()

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the training classes, with seen labels."""
        rows = self.split.train
        labels = self.split.seen_labels(self.manifest.labels[rows])
        images = self._stored(rows, labels) or TrainingImages(
            self.images, rows, labels, self.transforms.train, self.seed
        )
        sampler = self._make_sampler()
        # Lightning sets this on its trainer, undeclared.
        sampler.repeats = bool(getattr(self.trainer, "overfit_batches", 0))
        return ResumableLoader(
            images,
            batch_sampler=sampler,
            **self._how_to_load(images, persistent=True),
        )

    def val_dataloader(self) -> list[DataLoader[Item]]:
        """Images of the validation classes, this rank's share; none where the protocol holds no class out.

        Shares are equally long, for ranks wait for each other at every batch: the first images come again at
        the end, and count once (`RetrievalMetric` knows them by their ids).
        """
        rows = self.split.validation
        if len(rows) == 0:
            return []
        rank, world_size = self._rank
        return [self.loader(np.resize(rows, -(-len(rows) // world_size) * world_size)[rank::world_size])]

    def loader(self, rows: NDArray[np.int64]) -> DataLoader[Item]:
        """Any rows of the manifest, in their order, as evaluation sees them."""
        labels = self.manifest.labels[rows]
        images = self._stored(rows, labels) or PlainImages(
            self.images, rows, labels, self.transforms.evaluation
        )
        return Loader(images, batch_size=self.evaluation_batch_size, **self._how_to_load(images))

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """SHA-256 (hex) of what some images are to evaluation: where they come from, and their preparation.

        Files are known by their names, sizes and times of change, other images by their pixels; preparation
        by what it makes of some of them.
        """
        digest = hashlib.sha256(repr(self.transforms.evaluation).encode())
        if self.reads_files:
            chosen = self.manifest.select(rows)
            names = "\0".join((str(chosen.root.resolve()), *chosen.paths, caches.sources(chosen)))
            digest.update(names.encode("utf-8", "surrogateescape"))
            if self.crop_to_box and chosen.boxes is not None:
                digest.update(chosen.boxes.tobytes())
            rows = rows[:: max(1, len(rows) // PREPARED)]
        for image in in_order(self.image, rows.tolist()):
            digest.update(repr(image.shape).encode() + image.tobytes())
        return digest.hexdigest()

    def _stored(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> MapsOfImages | None:
        file = None if self.maps is None else self.maps.file_of(rows)
        if self.maps is None or file is None:
            return None
        return MapsOfImages(file, self.maps.names, rows, labels)

    def _how_to_load(self, images: Dataset[Item], persistent: bool = False) -> dict[str, Any]:
        stored = isinstance(images, MapsOfImages)
        # Maps are read as fast as another process could hand them over.
        workers = 0 if stored else self.workers
        return {
            "num_workers": workers,
            "persistent_workers": persistent and workers > 0,
            "worker_init_fn": functools.partial(start_worker, rank=self._rank[0]),
            "collate_fn": _as_it_is if stored else _collate,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # else each pass would move the global one
        }

    @property
    def _rank(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _make_sampler(self) -> ResumableBatchSampler:
        labels = self.split.seen_labels(self.manifest.labels[self.split.train])
        rank, world_size = self._rank
        return self._sampler(labels=labels, seed=self.seed, rank=rank, world_size=world_size)


def listed_paths(exclude: str | Path | None, manifest: Manifest) -> tuple[str, ...]:
    """The paths that a text file says to leave out, in its order.

    Args:
        exclude: one path a line, as in the manifest; empty lines do not count, nor do those that start with
            `# ` and are no path of the manifest. None lists nothing.
        manifest: all images.

    Raises:
        ValueError: there is no such file.
    """
    if exclude is None:
        return ()
    file = Path(exclude).expanduser()
    if not file.is_file():
        raise ValueError(f"data.exclude={exclude}: no such file. Give a text file with one path a line.")
    known = set(manifest.paths)
    # Not splitlines: a path may hold any of the other characters that it takes for ends of lines.
    lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
    lines = [line if line in known else line.removesuffix("\r") for line in lines]
    listed = [line for line in lines if line in known or (line.strip() and not line.startswith("# "))]
    unknown = [line for line in listed if line not in known]
    if unknown:
        log.warning(
            "%d of the %d paths in '%s' are not in the manifest; the first: '%s'.",
            *(len(unknown), len(listed), file, unknown[0]),
        )
    return tuple(dict.fromkeys(listed))


def without(manifest: Manifest, paths: Collection[str]) -> Manifest:
    """The manifest without the images of some paths."""
    rows = _rows_without(manifest, paths)
    if len(rows) == len(manifest):
        return manifest
    log.info("Left out %d images that data.exclude lists.", len(manifest) - len(rows))
    return manifest.select(rows)


def _rows_without(manifest: Manifest, paths: Collection[str]) -> NDArray[np.int64]:
    left_out = set(paths)
    return np.array([row for row, path in enumerate(manifest.paths) if path not in left_out], dtype=np.int64)


def _channels_first(pixels: Pixels) -> Tensor:
    """`(3, H, W)`, a view: torchvision resizes channels that lie together about twice as fast."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _random(*key: int) -> Iterator[None]:
    """Set torch's CPU generator for one image and put it back; those of GPUs are left alone."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    try:
        yield
    finally:
        generator.set_state(state)


def _collate(items: Sequence[Item]) -> Batch:
    images, labels, ids = zip(*items, strict=True)
    # In a worker, default_collate stacks into memory that the main process shares: one copy less.
    return Batch(default_collate(list(images)), torch.tensor(labels), torch.tensor(ids))


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _check_whole(manifest: Manifest) -> None:
    """Refuse rows that are told apart by their boxes alone, where boxes are not looked at."""
    if several := [path for path, count in Counter(manifest.paths).items() if count > 1]:
        raise ValueError(
            f"data.crop_to_box=false: {len(several)} pictures have several rows, such as '{several[0]}', and "
            "as whole images these would be the same. Set data.crop_to_box=true."
        )


def _check_images(images: Images, manifest: Manifest, cache: str) -> None:
    if len(images) != len(manifest):
        raise ValueError(f"There are {len(images)} images for {len(manifest)} rows of the manifest.")
    if cache == "memmap":
        raise ValueError(
            "data.cache=memmap keeps decoded files, and these images are none. Set data.cache=none or ram."
        )


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value}: choices are {', '.join(choices)}.")


def _workers(wanted: int | str, decoded: bool) -> int:
    if wanted == "auto":
        return 0 if decoded and not torch.accelerator.is_available() else min(8, available_cores())
    if not isinstance(wanted, int) or wanted < 0:
        raise ValueError(f"data.workers={wanted!r}: wanted 'auto' or a number of processes of at least 0.")
    return wanted
