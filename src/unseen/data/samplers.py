"""Which images stand in which batch: pure functions of (seed, epoch), sharded over ranks, resumable anywhere.

A batch is a list of `(position, epoch)`: the position of an image among the training images, and the epoch,
so that augmentation too can be a pure function of what it is applied to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Draw = tuple[int, int]


class ResumableBatchSampler(Sampler[list[Draw]], ABC):
    """Batches of one rank. Lightning sets the epoch; a resumed run sets the batch to start from.

    Args:
        seed: of every epoch's order.
        rank: which of the processes this is.
        world_size: how many processes share an epoch; each gets the same number of batches.
    """

    def __init__(self, *, seed: int, rank: int, world_size: int) -> None:
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> ResumableBatchSampler:
        """Lightning looks for `set_epoch` on the sampler of a batch sampler, nowhere else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch's."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of this rank, from `start` on; `start` counts for one iteration."""
        start, self.start = self.start, 0
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        batches = self.batches(generator)[: len(self) * self.world_size]
        for batch in batches[self.rank :: self.world_size][start:]:
            yield [(int(position), self.epoch) for position in batch]

    def __len__(self) -> int:
        return self.batch_count // self.world_size

    @property
    @abstractmethod
    def batch_count(self) -> int:
        """Batches of an epoch over all ranks; the same for every epoch."""

    @abstractmethod
    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """All batches of an epoch, over all ranks."""


class Shuffled(ResumableBatchSampler):
    """Every image once an epoch, in random order; the last, incomplete batch is left out.

    Args:
        labels: `(N,)` of the training images.
        batch_size: images a batch, on each rank.
        seed: see `ResumableBatchSampler`.
        rank: likewise.
        world_size: likewise.

    Raises:
        ValueError: there are fewer images than one batch on each rank takes.
    """

    def __init__(
        self, labels: NDArray[np.int64], *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        if not 1 <= batch_size * world_size <= len(labels):
            raise ValueError(
                f"sampler.batch_size={batch_size}: wanted between 1 and {len(labels) // world_size}, "
                f"for {len(labels)} training images on {world_size} process(es)."
            )
        self.count = len(labels)
        self.batch_size = batch_size

    @property
    def batch_count(self) -> int:
        return self.count // self.batch_size

    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """See `ResumableBatchSampler.batches`."""
        order = np.argsort(generator.random(self.count), kind="stable")
        return list(order[: self.batch_count * self.batch_size].reshape(-1, self.batch_size))


class ClassBalanced(ResumableBatchSampler):
    """P×K: P classes a batch, K images each.

    An epoch cuts each class, shuffled, into groups of K, and spreads its groups evenly over the epoch, so that
    every image is seen about once, also in large classes. A last group with fewer than K images is filled with
    other images of the class; a class with fewer than K images repeats some.

    Args:
        labels: `(N,)` of the training images.
        classes_per_batch: P, on each rank.
        images_per_class: K.
        seed: see `ResumableBatchSampler`.
        rank: likewise.
        world_size: likewise.

    Raises:
        ValueError: P or K is below 1, there are fewer than P classes, or too few images for the ranks.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        *,
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        classes = np.unique(labels)
        if not 1 <= classes_per_batch <= len(classes):
            raise ValueError(
                f"sampler.classes_per_batch={classes_per_batch}: the training split has {len(classes)} classes. "
                f"Choose between 1 and {len(classes)}."
            )
        if images_per_class < 1:
            raise ValueError(f"sampler.images_per_class={images_per_class}: wanted at least 1.")
        self.members = [np.flatnonzero(labels == label) for label in classes]
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        if len(self) < 1:
            raise ValueError(
                f"{len(labels)} training images make {self.batch_count} batches of {classes_per_batch}×"
                f"{images_per_class}, fewer than the {world_size} processes. Make batches smaller."
            )

    @property
    def batch_count(self) -> int:
        groups = sum(-(-len(images) // self.images_per_class) for images in self.members)
        return max(1, groups // self.classes_per_batch)

    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """See `ResumableBatchSampler.batches`."""
        pending = self._spread(generator)
        made = []
        for _ in range(self.batch_count):
            batch: dict[int, NDArray[np.int64]] = {}
            later = []
            for position, (member, group) in enumerate(pending):
                if len(batch) == self.classes_per_batch:
                    later += pending[position:]
                    break
                if member in batch:
                    later.append((member, group))
                else:
                    batch[member] = group
            pending = later
            self._fill(batch, generator)
            made.append(np.concatenate(list(batch.values())))
        return made

    def _spread(self, generator: np.random.Generator) -> list[tuple[int, NDArray[np.int64]]]:
        """All groups of all classes; the j-th of a class's n comes at about (j + ½) / n of the epoch."""
        times, groups = [], []
        for member, images in enumerate(self.members):
            count = -(-len(images) // self.images_per_class)
            shuffled = images[np.argsort(generator.random(len(images)), kind="stable")]
            cut = np.resize(shuffled, (count, self.images_per_class))
            times += list((np.arange(count) + generator.random()) / count)
            groups += [(member, group) for group in cut]
        return [groups[index] for index in np.argsort(times, kind="stable")]

    def _fill(self, batch: dict[int, NDArray[np.int64]], generator: np.random.Generator) -> None:
        """Near the end only groups of classes already in the batch may be left: draw others once more."""
        for member in np.argsort(generator.random(len(self.members)), kind="stable"):
            if len(batch) == self.classes_per_batch:
                return
            if int(member) not in batch:
                images = self.members[member]
                order = np.argsort(generator.random(len(images)), kind="stable")
                batch[int(member)] = np.resize(images[order], self.images_per_class)
