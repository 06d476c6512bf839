"""What is odd in a gallery: near-duplicates, images that lie far from their class, labels that look wrong.

All of it by exact search, blockwise at any size of the gallery.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unseen.data.images import ImageError, PassingError
from unseen.data.pixels import to_pixels
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import LABEL, read_place
from unseen.deploy.model import Model
from unseen.retrieval import search

MOST_COPIES = 100
"""Near-duplicates that are looked for, of one image."""
PAIR = ["group", "similarity", "same_label"] + [
    f"{name}_{number}" for number in (1, 2) for name in ("id", "path", LABEL)
]
"""Columns of a table of pairs."""
SAMPLED = 100
"""Images that are copied to learn how similar copies are."""


Row = dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What is odd, as rows of tables; each list begins with the oddest.

    Args:
        duplicates: pairs of near-duplicates: `group`, `similarity`, `same_label`, and `id`, `path` and
            `label` of both (`id_1`, `id_2`, …).
        outliers: rows of `images` that lie far from their class.
        labels: rows of `images` whose neighbours have one other label.
        images: all: `id`, `path`, `label`, `outlier_factor`, `distance_to_class`, `neighbours_label`,
            `neighbours_share`, `nearest_id`, `nearest_similarity`.
    """

    duplicates: list[Row]
    outliers: list[Row]
    labels: list[Row]
    images: list[Row]


class Nearest(NamedTuple):
    """The nearest other images of each image of a gallery, nearest first.

    Args:
        rows: `(N, k)` int64, of the gallery; -1 where there are fewer.
        similarities: `(N, k)` float32, cosine; -inf likewise.
    """

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


class Pairs(NamedTuple):
    """Images that are alike, the most similar first.

    Args:
        rows: `(P, 2)` int64, of the gallery, the lower one first.
        similarities: `(P,)` float32.
        groups: `(P,)` int64: pairs that hang together have one number, the largest group the lowest.
    """

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]
    groups: NDArray[np.int64]


class Outlyingness(NamedTuple):
    """How far each image lies from its class.

    Args:
        distance: `(N,)` float64, mean of 1 − cosine to the k nearest images of its class; NaN where it is
            the only one.
        factor: `(N,)` float64, local outlier factor within its class: 1 for an image as far from its
            neighbours as these are from theirs; NaN likewise.
    """

    distance: NDArray[np.float64]
    factor: NDArray[np.float64]


class Votes(NamedTuple):
    """What the neighbours of each image say of its label.

    Args:
        label: `(N,)` texts, the most frequent one of the k nearest images that have one; ties go to the
            nearer image.
        share: `(N,)` float64, of these images that have it.
    """

    label: NDArray[np.object_]
    share: NDArray[np.float64]


def inspect(gallery: Gallery, *, duplicate: float, outlier: float, agreement: float, k: int) -> Inspection:
    """Near-duplicates, outliers and suspicious labels of a gallery.

    Args:
        gallery: with at least two images.
        duplicate: similarity from which on two images are near-duplicates; see `similarity_of_copies`.
        outlier: local outlier factor from which on an image is an outlier of its class.
        agreement: share of the neighbours that must have one other label.
        k: neighbours that outliers and labels are judged by.

    Raises:
        ValueError: a number is out of range, or there are fewer than two images.
    """
    for name, value, is_wanted, wanted in (
        ("duplicate", duplicate, -1 < duplicate <= 1, "a cosine above -1, at most 1"),
        ("outlier", outlier, outlier > 0, "a factor above 0"),
        ("agreement", agreement, 0 < agreement <= 1, "a share above 0, at most 1"),
        ("k", k, k >= 1, "at least 1"),
    ):
        if not is_wanted:
            raise ValueError(f"{name}={value}: wanted {wanted}.")
    found = nearest(gallery, min(k, max(1, len(gallery) - 1)))
    images = _rows_of_images(gallery, found, outlyingness(gallery, k), votes(gallery, found))
    outliers = [row for row in images if row["outlier_factor"] >= outlier]
    labels = [
        row
        for row in images
        if "" != row[LABEL] != row["neighbours_label"] and row["neighbours_share"] >= agreement
    ]
    return Inspection(
        _rows_of_pairs(gallery, duplicates(gallery, found, duplicate)),
        sorted(outliers, key=lambda row: -row["outlier_factor"]),
        sorted(labels, key=lambda row: (-row["neighbours_share"], -row["nearest_similarity"])),
        images,
    )


def nearest(gallery: Gallery, k: int) -> Nearest:
    """The `k` nearest other images of each image, exactly.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(gallery) < 2:
        raise ValueError(f"gallery={gallery.folder} holds {len(gallery)} images: nothing to compare.")
    return _among(gallery.embeddings, k)


def duplicates(gallery: Gallery, found: Nearest, similarity: float) -> Pairs:
    """Pairs of at least a similarity, of each image with at most `MOST_COPIES` others.

    Args:
        gallery: whose images they are.
        found: by `nearest`.
        similarity: from which on two images are near-duplicates.
    """
    pairs = list(_pairs(np.arange(len(gallery)), found, similarity))
    full = np.flatnonzero(found.similarities[:, -1] >= similarity)
    if len(full):
        # All neighbours that were asked for are alike: there may be more.
        pairs += _pairs(full, _deeper(gallery, full), similarity)
    known = {(min(one, other), max(one, other)): value for one, other, value in pairs}
    rows = np.array(sorted(known), dtype=np.int64).reshape(-1, 2)
    values = np.array([known[one, other] for one, other in rows.tolist()], dtype=np.float32)
    order = np.lexsort((rows[:, 1], rows[:, 0], -values))
    return Pairs(rows[order], values[order], _groups(rows[order], len(gallery)))


def outlyingness(gallery: Gallery, k: int) -> Outlyingness:
    """How far images lie from their class (Breunig et al. 2000, "LOF: identifying density-based local
    outliers", definitions 3 to 7, with 1 − cosine as the distance, within each class).

    Images without a label are looked at as one class.

    Args:
        gallery: with images.
        k: nearest images of the class (MinPts), fewer where it has no more.
    """
    labels = gallery.column(LABEL).astype(str)
    distance, factor = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1
    for rows in np.split(order, ends):
        if len(rows) < 2:
            continue
        own = _among(gallery.embeddings[rows], min(k, len(rows) - 1))
        away = np.maximum(0, 1 - own.similarities.astype(np.float64))
        reach = np.maximum(away, away[own.rows, -1])
        density = 1 / (reach.mean(axis=1) + 1e-10)
        distance[rows] = away.mean(axis=1)
        factor[rows] = density[own.rows].mean(axis=1) / density
    return Outlyingness(distance, factor)


def votes(gallery: Gallery, found: Nearest) -> Votes:
    """The label that most of the nearest images have.

    Args:
        gallery: whose images they are.
        found: by `nearest`.
    """
    names, codes = np.unique(gallery.column(LABEL).astype(str), return_inverse=True)
    label, share = np.full(len(codes), "", dtype=np.object_), np.zeros(len(codes))
    for row, others in enumerate(found.rows):
        near = codes[others[others >= 0]]
        near = near[names[near] != ""]
        if not len(near):
            continue
        seen, first, counts = np.unique(near, return_index=True, return_counts=True)
        best = np.lexsort((first, -counts))[0]
        label[row], share[row] = names[seen[best]], counts[best] / len(near)
    return Votes(label, share)


def similarity_of_copies(model: Model, gallery: Gallery, share: float) -> float:
    """The similarity that a share of copies keeps: re-encoded, made smaller, or without their margin.

    Of up to `SAMPLED` images of the gallery, drawn at random, three copies each are embedded: JPEG of quality
    50, three quarters of each side, and without 5 % at each side.

    Args:
        model: of the gallery's bundle.
        gallery: whose files are read.
        share: of the copies that reach the similarity.

    Raises:
        ValueError: no file of the sample can be read, or the gallery is of another bundle.
    """
    gallery.require(str(model.facts["bundle"]))
    similarities: list[float] = []
    for row in np.random.default_rng(0).permutation(len(gallery))[:SAMPLED]:
        try:
            image = Image.fromarray(read_place(str(gallery.column("path")[row])))
        except PassingError:
            raise
        except ImageError:
            continue
        copied = model.embed([to_pixels(copy(image)) for copy in COPIES]).numpy()
        similarities += (copied.astype(np.float64) @ gallery.embeddings[row]).tolist()
    if not similarities:
        raise ValueError(
            f"gallery={gallery.folder}: none of its files can be read, so that the similarity of copies is "
            "not known. Give one: duplicate=0.95."
        )
    return float(np.quantile(similarities, 1 - share, method="lower"))


def _reencoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def _smaller(image: Image.Image) -> Image.Image:
    return image.resize(
        (max(1, 3 * image.width // 4), max(1, 3 * image.height // 4)), Image.Resampling.BICUBIC
    )


def _without_margin(image: Image.Image) -> Image.Image:
    left, top = image.width // 20, image.height // 20
    return image.crop((left, top, image.width - left, image.height - top))


COPIES: tuple[Callable[[Image.Image], Image.Image], ...] = (_reencoded, _smaller, _without_margin)


def _among(embeddings: NDArray[np.float32], k: int) -> Nearest:
    found = search(torch.from_numpy(np.asarray(embeddings)), k=k)
    return Nearest(found.positions.numpy(), found.similarities.numpy())


def _deeper(gallery: Gallery, rows: NDArray[np.int64]) -> Nearest:
    """The nearest `MOST_COPIES` others of some images."""
    everything = torch.from_numpy(np.asarray(gallery.embeddings))
    found = search(
        everything[rows],
        everything,
        k=MOST_COPIES,
        ids=torch.from_numpy(rows),
        gallery_ids=torch.arange(len(everything)),
    )
    return Nearest(found.positions.numpy(), found.similarities.numpy())


def _pairs(rows: NDArray[np.int64], found: Nearest, similarity: float) -> Iterator[tuple[int, int, float]]:
    for place, rank in zip(*np.nonzero(found.similarities >= similarity), strict=True):
        yield int(rows[place]), int(found.rows[place, rank]), float(found.similarities[place, rank])


def _groups(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """A number for each pair, of the images that it hangs together with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(rows), dtype=bool), (rows[:, 0], rows[:, 1])), shape=(count, count))
    component = connected_components(links, directed=False)[1]
    of_pair = component[rows[:, 0]]
    sizes = np.bincount(component)
    # The largest first; of equal ones, that of the lowest row.
    ordered = sorted(set(of_pair.tolist()), key=lambda one: (-sizes[one], one))
    number = {one: place for place, one in enumerate(ordered, start=1)}
    return np.array([number[one] for one in of_pair.tolist()], dtype=np.int64)


def _rows_of_pairs(gallery: Gallery, pairs: Pairs) -> list[Row]:
    found = []
    for (one, other), similarity, group in zip(*pairs, strict=True):
        first, second = _known(gallery, one), _known(gallery, other)
        found.append(
            {
                "group": int(group),
                "similarity": float(similarity),
                "same_label": first[LABEL] == second[LABEL],
                **{f"{name}_1": value for name, value in first.items()},
                **{f"{name}_2": value for name, value in second.items()},
            }
        )
    return found


def _rows_of_images(gallery: Gallery, found: Nearest, outlying: Outlyingness, voted: Votes) -> list[Row]:
    return [
        {
            **_known(gallery, row),
            "outlier_factor": float(outlying.factor[row]),
            "distance_to_class": float(outlying.distance[row]),
            "neighbours_label": str(voted.label[row]),
            "neighbours_share": float(voted.share[row]),
            "nearest_id": int(gallery.ids[found.rows[row, 0]]),
            "nearest_similarity": float(found.similarities[row, 0]),
        }
        for row in range(len(gallery))
    ]


def _known(gallery: Gallery, row: int) -> Row:
    return {
        "id": int(gallery.ids[row]),
        "path": str(gallery.column("path")[row]),
        LABEL: str(gallery.column(LABEL)[row]),
    }
