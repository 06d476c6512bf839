"""On this machine: threads read and prepare images while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unseen.data.images import ImageError, PassingError, in_order
from unseen.deploy.listing import read_place
from unseen.deploy.model import Model, as_device, default_device, starts


class Part(NamedTuple):
    """What became of some images that follow each other.

    Args:
        embeddings: `(n, d)` float32, of those that could be read.
        rows: `n` positions of these among all places, ascending.
        unreadable: place → why it could not be read, of the others.
    """

    embeddings: NDArray[np.float32]
    rows: list[int]
    unreadable: dict[str, str]


Runner = Callable[[Model, Sequence[str], int], Iterator[Part]]
"""Model, places of images, images at a time → parts in the order of the places, each place in one of them.

It raises a `PassingError` where an image cannot be read now, because of a machine.
"""


@dataclass(frozen=True)
class Local:
    """This machine.

    Args:
        device: where the network computes; none: a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.
    """

    device: str | None

    def __post_init__(self) -> None:
        if self.device is not None:
            as_device(self.device)

    def __call__(self, model: Model, places: Sequence[str], batch_size: int) -> Iterator[Part]:
        """See `Runner`."""
        return embed_here(model.to(self.device or default_device()), places, batch_size)


def embed_here(
    model: Model, places: Sequence[str], batch_size: int, threads: int | None = None
) -> Iterator[Part]:
    """A part for each batch; see `Runner`.

    Args:
        model: on the device to use.
        places: of a listing.
        batch_size: images at a time.
        threads: that read and prepare; none: one a core.

    Raises:
        PassingError: an image cannot be read now, because of this machine.
        ValueError: the batch size is no whole number from 1 upwards.
    """

    def prepared(start: int) -> tuple[Tensor, list[int], dict[str, str]]:
        good, images, problems = [], [], {}
        for row in range(start, min(len(places), start + batch_size)):
            try:
                images.append(model.prepare(read_place(places[row])))
                good.append(row)
            except PassingError:
                raise
            except ImageError as error:
                problems[places[row]] = str(error)
        return torch.stack(images) if images else torch.empty(0), good, problems

    for batch, good, problems in in_order(prepared, starts(len(places), batch_size), threads):
        found = model.embed_prepared(batch).numpy() if good else np.empty((0, model.size), np.float32)
        yield Part(found, good, problems)
