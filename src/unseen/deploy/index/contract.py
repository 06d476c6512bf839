"""What an index is: candidates for each query, fast, more or fewer of them as it is asked to try harder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unseen.deploy.gallery import Gallery


class Index(Protocol):
    """Finds candidates; exact similarities decide among them afterwards."""

    @property
    def size(self) -> int:
        """Images in it, those included that were removed from the gallery since."""

    def candidates(self, queries: NDArray[np.float32], k: int, effort: int) -> NDArray[np.int64]:
        """Ids `(Q, c)` of images that may be the `k` nearest, `c ≥ k`; -1 for none.

        Args:
            queries: `(Q, d)`, of length 1.
            k: how many are wanted in the end.
            effort: 1, 2, 4, …: more of it finds more, and takes longer.
        """

    def publish(self) -> None:
        """Take the place of a former index outside the folder; called once this one finds enough."""


class Kind(Protocol):
    """How an index is made and read."""

    def build(self, gallery: Gallery, folder: Path) -> Index:
        """Index all images, with what it needs in `folder`, which is empty."""

    def load(self, gallery: Gallery, folder: Path) -> Index:
        """The index that `build` left in `folder`."""
