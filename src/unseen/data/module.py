"""Joins manifest, split, sampler and transforms into loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unseen.data.batch import Batch
from unseen.data.images import Pixels, read_image
from unseen.data.manifest import Manifest
from unseen.data.samplers import Draw, ResumableBatchSampler
from unseen.data.split import Split
from unseen.data.transforms import Transforms

Item = tuple[Tensor, int, int]


class TrainingImages(Dataset[Item]):
    """Augmented images of the training classes, by position and epoch.

    Args:
        read: row of the manifest → `(H, W, 3)` uint8.
        rows: `(N,)` rows of the manifest.
        labels: `(N,)` seen labels.
        transform: `(3, H, W)` uint8 → `(3, S, S)` uint8.
        seed: of the augmentation, which is a pure function of seed, epoch and row.
    """

    def __init__(
        self,
        read: Callable[[int], Pixels],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        transform: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.read = read
        self.rows = rows
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Item:
        position, epoch = draw
        row = int(self.rows[position])
        image = torch.from_numpy(self.read(row).transpose(2, 0, 1).copy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + epoch) * 1_000_000_007 + row)
            image = self.transform(image)
        return image, int(self.labels[position]), row


class PlainImages(Dataset[Item]):
    """Images as evaluation sees them, with the manifest's labels.

    Args:
        read: row of the manifest → `(H, W, 3)` uint8.
        rows: `(N,)` rows of the manifest.
        labels: `(N,)` labels of the manifest.
        transform: `(3, H, W)` uint8 → `(3, S, S)` uint8.
    """

    def __init__(
        self,
        read: Callable[[int], Pixels],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.read = read
        self.rows = rows
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Item:
        row = int(self.rows[position])
        image = torch.from_numpy(self.read(row).transpose(2, 0, 1).copy())
        return self.transform(image), int(self.labels[position]), row


class ResumableLoader(DataLoader[Item]):
    """A loader whose position is in the checkpoint: a resumed epoch goes on with the next batch."""

    _given = 0
    _start = 0

    def __iter__(self) -> Iterator[Any]:
        sampler = self.batch_sampler
        assert isinstance(sampler, ResumableBatchSampler)
        start, self._start = self._start, 0
        sampler.start = self._given = start
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration there; after the last batch of an epoch, at the start of the next."""
        self._start = state["given"] % len(self)


class DataModule(LightningDataModule):
    """Loaders for training, validation and any rows of a manifest.

    Args:
        manifest: the images.
        protocol: manifest → split.
        sampler: called with `labels`, `seed`, `rank` and `world_size`.
        transforms: for training and evaluation.
        seed: of order and augmentation.
        workers: processes that prepare images; `auto` takes the cores that are there, at most eight; 0 none.
        evaluation_batch_size: images a batch where nothing is learned.

    Raises:
        ValueError: a number is out of range, or the sampler cannot draw from the split.
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
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.split = protocol(manifest)
        self.transforms = transforms
        self.seed = seed
        self.workers = _workers(workers)
        if evaluation_batch_size < 1:
            raise ValueError(f"data.evaluation_batch_size={evaluation_batch_size}: wanted at least 1.")
        self.evaluation_batch_size = evaluation_batch_size
        self._sampler = sampler
        self._make_sampler()  # refuses what cannot work before anything slow

    @property
    def num_classes(self) -> int:
        """Seen classes, C."""
        return self.split.num_classes

    def read(self, row: int) -> Pixels:
        """One image of the manifest, `(H, W, 3)` uint8, as it is before any transform."""
        boxes = self.manifest.boxes
        return read_image(self.manifest.absolute(row), None if boxes is None else boxes[row])

    def image(self, row: int) -> Pixels:
        """One image as evaluation sees it, `(S, S, 3)` uint8, for pictures."""
        tensor = torch.from_numpy(self.read(row).transpose(2, 0, 1).copy())
        prepared: Tensor = self.transforms.evaluation(tensor)
        return prepared.permute(1, 2, 0).numpy()

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the training classes, with seen labels."""
        rows = self.split.train
        images = TrainingImages(
            self.read,
            rows,
            self.split.seen_labels(self.manifest.labels[rows]),
            self.transforms.train,
            self.seed,
        )
        return ResumableLoader(
            images,
            batch_sampler=self._make_sampler(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[DataLoader[Item]]:
        """Images of the validation classes; none where the protocol holds no class out."""
        return [self.loader(self.split.validation)] if len(self.split.validation) else []

    def loader(self, rows: NDArray[np.int64]) -> DataLoader[Item]:
        """Any rows of the manifest, in their order, as evaluation sees them."""
        return DataLoader(
            PlainImages(self.read, rows, self.manifest.labels[rows], self.transforms.evaluation),
            batch_size=self.evaluation_batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )

    def _make_sampler(self) -> ResumableBatchSampler:
        labels = self.split.seen_labels(self.manifest.labels[self.split.train])
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._sampler(labels=labels, seed=self.seed, rank=rank, world_size=world_size)


def _collate(items: Sequence[Item]) -> Batch:
    images, labels, ids = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(ids))


def _workers(wanted: int | str) -> int:
    if wanted == "auto":
        return min(
            8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    if not isinstance(wanted, int) or wanted < 0:
        raise ValueError(f"data.workers={wanted!r}: wanted 'auto' or a number of processes of at least 0.")
    return wanted
