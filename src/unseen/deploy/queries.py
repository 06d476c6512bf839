"""Queries of a gallery: an image, many, a cut of one, or several that are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unseen.data.images import Pixels, cut
from unseen.data.sources.layout import IMAGE_SUFFIXES
from unseen.deploy.gallery import Found, Gallery
from unseen.deploy.listing import list_images, read_place
from unseen.deploy.model import Model


@dataclass(frozen=True)
class Queries:
    """What is searched with.

    Args:
        names: of the queries, for people.
        embeddings: `(Q, d)`.
    """

    names: list[str]
    embeddings: Tensor


def embed_queries(
    model: Model, source: str | Path, *, crop: Sequence[int] | None = None, fused: bool = False
) -> Queries:
    """Embed an image file, or all images of a source.

    Args:
        model: of the gallery's bundle.
        source: an image, or what `list_images` takes.
        crop: left, top, right, bottom, in pixels; the rest of each image does not count.
        fused: all images are one query: the mean of their embeddings, brought to length 1.

    Raises:
        ValueError: there is no such source or image, one cannot be read, or the cut holds no pixel.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        places = [str(path)]
    else:
        places = list_images(path).places

    def read(row: int) -> Pixels:
        pixels = read_place(places[row])
        return pixels if crop is None else part_of(pixels, crop)

    embeddings = torch.cat(list(model.embed_batches(len(places), read)))
    if not fused:
        return Queries(places, embeddings)
    return Queries([f"{len(places)} images of {source}"], fuse(embeddings))


def part_of(pixels: Pixels, crop: Sequence[int]) -> Pixels:
    """Part of an image `(H, W, 3)`.

    Args:
        pixels: the image.
        crop: left, top, right, bottom; right and bottom exclusive, clipped to the image.

    Raises:
        ValueError: it holds no pixel.
    """
    part = cut(pixels, crop)
    if part.size == 0:
        raise ValueError(
            f"crop={list(crop)} holds none of the {pixels.shape[1]}×{pixels.shape[0]} pixels of the image. "
            "Wanted left, top, right, bottom."
        )
    return part.copy()


def fuse(embeddings: Tensor) -> Tensor:
    """Several embeddings `(n, d)` of one thing → `(1, d)`, their mean direction."""
    return torch.nn.functional.normalize(embeddings.mean(dim=0, keepdim=True), dim=1)


def rows_of(queries: Queries, found: Found, gallery: Gallery) -> list[dict[str, Any]]:
    """A row for each neighbour: `query`, `rank` from 1, `similarity`, `id` and what is known of the image."""
    return [
        {"query": name, "rank": rank, "similarity": float(similarity), **gallery.row(int(id))}
        for name, ids, similarities in zip(queries.names, *found, strict=True)
        for rank, (id, similarity) in enumerate(zip(ids, similarities, strict=True), start=1)
        if id >= 0
    ]
