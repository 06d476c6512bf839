"""The sheet of a run, `retrieval_sheet.json`: a few queries, their neighbours, and what they look like."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unseen.files import replacing

SIDE, QUALITY = 56, 70
"""Pixels, and JPEG quality, of a thumbnail: about 1.3 kB, so that 24 × 9 of them stay below 500 kB."""


@dataclass(frozen=True)
class SheetRow:
    """One query and its nearest neighbours, nearest first.

    Args:
        query: row of the manifest.
        neighbours: rows of the manifest; fewer than elsewhere where the gallery is small.
        similarities: of the neighbours.
        right: which neighbours are of the query's class.
    """

    query: int
    neighbours: list[int]
    similarities: list[float]
    right: list[bool]


@dataclass(frozen=True)
class RetrievalSheet:
    """Queries that are the same in every run of one split, so that two runs can be laid side by side.

    Args:
        split: fingerprint of the split; sheets of equal splits show equal queries.
        manifest: content hash of the manifest; rows of equal manifests are equal images.
        rows: the queries.
        names: row of the manifest → class name.
        thumbnails: row of the manifest → JPEG in base64.
    """

    split: str
    manifest: str
    rows: list[SheetRow]
    names: dict[int, str]
    thumbnails: dict[int, str]

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> RetrievalSheet:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no retrieval sheet.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return RetrievalSheet(
                content["split"],
                content["manifest"],
                [SheetRow(**row) for row in content["rows"]],
                {int(row): name for row, name in content["names"].items()},
                {int(row): picture for row, picture in content["thumbnails"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' is not the retrieval sheet of a run: {error!r}.") from error


def jpeg(pixels: NDArray[np.uint8], side: int = SIDE) -> bytes:
    """A thumbnail of `(H, W, 3)` pixels, its longer side `side` at most."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """`jpeg` in base64, as a page embeds it."""
    return base64.b64encode(jpeg(pixels)).decode("ascii")
