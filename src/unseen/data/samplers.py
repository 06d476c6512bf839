"""Which images stand in which batch: pure functions of (seed, epoch), sharded over ranks, resumable anywhere.

One is also a function of where the classes lie when the epoch begins.

A batch is a list of `(position, epoch, place)`: the position of an image among the training images, the
epoch, and the place of this draw in the epoch, so that augmentation too can be a pure function of what it is
applied to, and differs between two draws of one image.
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from unseen.data.clusters import clusters, squared_distances

log = logging.getLogger(__name__)

Draw = tuple[int, int, int]


class ResumableBatchSampler(Sampler[list[Draw]], ABC):
    """Batches of one rank. Lightning sets the epoch; a resumed run sets the batch to start from.

    Args:
        seed: of every epoch's order.
        rank: which of the processes this is.
        world_size: how many processes share an epoch; each gets the same number of batches.

    Attributes:
        centres: of the classes in the embedding as an epoch begins, `(C, d)`, where they are known.
    """

    sees_centres: ClassVar[bool] = False
    """Whether its batches depend on them."""

    def __init__(self, *, seed: int, rank: int, world_size: int) -> None:
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        self.repeats = False
        self.centres: NDArray[np.floating] | None = None

    @property
    def sampler(self) -> ResumableBatchSampler:
        """Lightning looks for `set_epoch` on the sampler of a batch sampler, nowhere else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch's; with `repeats`, it gives what the first epoch gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of this rank, from `start` on; `start` counts for one iteration."""
        start, self.start = self.start, 0
        epoch = 0 if self.repeats else self.epoch
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        batches = self.batches(generator)
        for turn in range(start, len(self)):
            number = turn * self.world_size + self.rank
            first = number * len(batches[number])
            yield [(int(position), epoch, first + place) for place, position in enumerate(batches[number])]

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
        order = generator.permutation(self.count)
        return list(order[: self.batch_count * self.batch_size].reshape(-1, self.batch_size))


class ClassBalanced(ResumableBatchSampler):
    """P×K: P distinct classes a batch, K images each.

    An epoch cuts each class, shuffled, into groups of K, and deals them out to different batches, so that
    every image is seen once. Where that does not come out even, images are seen again rather than left
    out: a last group with fewer than K images is filled with others of its class, a class with fewer than K
    images repeats some, the last batches are filled with groups of other classes. Only a class that has more
    groups than all classes together fill batches leaves images out of an epoch, others each time.

    Args:
        labels: `(N,)` of the training images.
        classes_per_batch: P, on each rank; all classes where there are fewer.
        images_per_class: K.
        seed: see `ResumableBatchSampler`.
        rank: likewise.
        world_size: likewise.

    Raises:
        ValueError: P or K is below 1.
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
        if classes_per_batch < 1:
            raise ValueError(f"sampler.classes_per_batch={classes_per_batch}: wanted at least 1.")
        if classes_per_batch > len(classes):
            _say_once(
                f"sampler.classes_per_batch={classes_per_batch}: the training split has {len(classes)} "
                "classes; each batch has all of them."
            )
        if images_per_class < 1:
            raise ValueError(f"sampler.images_per_class={images_per_class}: wanted at least 1.")
        by_class = np.argsort(labels, kind="stable")
        self.members = np.split(by_class, np.searchsorted(labels[by_class], classes[1:]))
        largest = max(map(len, self.members))
        if images_per_class > largest:
            _say_once(
                f"sampler.images_per_class={images_per_class}: no training class has more than {largest} "
                "images; each comes several times in a batch."
            )
        self.classes_per_batch = min(classes_per_batch, len(classes))
        self.images_per_class = images_per_class

    @cached_property
    def batch_count(self) -> int:
        """See `ResumableBatchSampler.batch_count`."""
        groups = np.array([-(-len(images) // self.images_per_class) for images in self.members])
        count, before = int(groups.max()), 0
        while count != before:
            # A batch takes at most one group of a class, so what a class has beyond `count` fills none.
            count, before = -(-int(np.minimum(groups, count).sum()) // self.classes_per_batch), count
        return -(-count // self.world_size) * self.world_size

    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """See `ResumableBatchSampler.batches`."""
        made: list[dict[int, NDArray[np.int64]]] = [{} for _ in range(self.batch_count)]
        load = np.zeros(len(made))
        for member in generator.permutation(len(self.members)):
            groups = self._groups(member, generator)[: len(made)]
            # Always to the emptiest batches: loads then differ by at most one, so that none overflows.
            chosen = np.argsort(load + generator.random(len(made)))[: len(groups)]
            load[chosen] += 1
            for number, group in zip(chosen, groups, strict=True):
                made[number][member] = group
        for batch in made:
            self._fill(batch, generator)
        return [np.concatenate(list(batch.values())) for batch in made]

    def _groups(self, member: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """`(G, K)`: the images of a class, shuffled; the last group wraps around."""
        images = generator.permutation(self.members[member])
        count = -(-len(images) // self.images_per_class)
        return np.resize(images, (count, self.images_per_class))

    def _fill(self, batch: dict[int, NDArray[np.int64]], generator: np.random.Generator) -> None:
        """Where too few groups are left for a whole batch, other classes give one more."""
        missing = self.classes_per_batch - len(batch)
        if missing:
            others = np.setdiff1d(np.arange(len(self.members)), list(batch))
            for member in generator.permutation(others)[:missing]:
                batch[member] = self._groups(member, generator)[0]


class ClusterBalanced(ClassBalanced):
    """P×K as `ClassBalanced`, of classes that lie close together in the embedding, so that pairs are hard.

    As an epoch begins, the directions of the class centres fall into clusters (k-means). A batch starts from
    a class of which most is left to see, takes classes of its cluster, then of the nearest others. Every
    image is seen as often as by `ClassBalanced`: what must be in every batch that is left, is. Until there
    are centres, in the first epoch, classes are mixed at random.

    Args:
        labels: `(N,)` of the training images, in 0..C-1.
        classes_per_batch: see `ClassBalanced`.
        images_per_class: likewise.
        classes_per_cluster: on average; there are C by as many clusters, rounded up.
        permuted: the control: clusters of the same sizes, of classes drawn at random.
        seed: see `ResumableBatchSampler`.
        rank: likewise.
        world_size: likewise.

    Raises:
        ValueError: a number is below 1.
    """

    sees_centres = True

    def __init__(
        self,
        labels: NDArray[np.int64],
        *,
        classes_per_batch: int,
        images_per_class: int,
        classes_per_cluster: int,
        permuted: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            labels,
            classes_per_batch=classes_per_batch,
            images_per_class=images_per_class,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        if classes_per_cluster < 1:
            raise ValueError(f"sampler.classes_per_cluster={classes_per_cluster}: wanted at least 1.")
        self.cluster_count = -(-len(self.members) // classes_per_cluster)
        if self.cluster_count == 1:
            _say_once(
                f"sampler.classes_per_cluster={classes_per_cluster}: one cluster holds all "
                f"{len(self.members)} classes of the training split, so batches are mixed at random."
            )
        self.permuted = permuted

    def batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """See `ResumableBatchSampler.batches`."""
        if self.centres is None or self.repeats:
            return super().batches(generator)
        cluster, nearness = self._clusters(self.centres, generator)
        groups = [self._groups(member, generator)[: self.batch_count] for member in range(len(self.members))]
        left = np.array([len(group) for group in groups])
        made = []
        for batches_left in range(self.batch_count, 0, -1):
            wanted = left + generator.random(len(left))
            near = nearness[cluster[wanted.argmax()], cluster]
            # First what each batch needs that is left, else it is not all seen; last what is seen already.
            order = np.lexsort((-wanted, near, left == 0, left < batches_left))
            chosen = order[: self.classes_per_batch]
            made.append(
                np.concatenate(
                    [
                        groups[member][-left[member]] if left[member] else self._groups(member, generator)[0]
                        for member in chosen
                    ]
                )
            )
            left[chosen] = np.maximum(left[chosen] - 1, 0)
        # The last ones are what was left over: not for the end of every epoch, nor for one rank.
        return [made[number] for number in generator.permutation(len(made))]

    def _clusters(
        self, centres: NDArray[np.floating], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The cluster of each class, `(C,)`; how many clusters lie nearer to one than another, `(k, k)`."""
        lengths = np.linalg.norm(centres, axis=1, keepdims=True)
        directions = centres / np.where(lengths > 0, lengths, 1)
        cluster, means = clusters(directions, self.cluster_count, generator)
        if self.permuted:
            cluster = generator.permutation(cluster)
        return cluster, squared_distances(means, means).argsort(axis=1).argsort(axis=1)


@functools.cache
def _say_once(message: str) -> None:
    """A run makes its sampler more than once."""
    log.warning(message)
