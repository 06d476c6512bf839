"""Which images are seen, held out, searched with and searched among: class-disjoint by assertion."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unseen.data.manifest import Manifest, ManifestError

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
FEWEST_HELD_OUT = (4, 2)
"""Images of a class that are held out, and that stay in training, at least; the second where the class is too
small for the first. Of two images each has one to find: R@1, MAP@R and R-precision are then one number."""
MOST_HELD_OUT = 1.5
"""Times `held_out_fraction` that may be held out before classes are left whole."""


@dataclass(frozen=True)
class Split:
    """Rows of a manifest, each array ascending.

    Args:
        manifest: the images.
        train: images that are trained on.
        held_out: images of training classes that are kept out of training, for the generalisation gap.
        validation: images of training classes that are kept out as a whole, to choose the epoch by.
        query: test images that are searched with.
        gallery: test images that are searched among; equal to `query` where a benchmark has no official pair.

    Raises:
        ManifestError: a class is in two parts that must not share one, or training or test is empty.
    """

    manifest: Manifest
    train: Rows
    held_out: Rows
    validation: Rows
    query: Rows
    gallery: Rows

    def __post_init__(self) -> None:
        for name in ("train", "query", "gallery"):
            if len(getattr(self, name)) == 0:
                raise ManifestError(
                    f"The split leaves no {name} images (of {len(self.manifest)} in the manifest). "
                    "Check the roles that data.split gives."
                )
        test = np.union1d(self.query, self.gallery)
        parts = {"train": self.train, "validation": self.validation, "test": test}
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            self._assert_disjoint(first, parts[first], second, parts[second])
        both = np.intersect1d(self.train, self.held_out)
        if both.size:
            raise ManifestError(
                f"{both.size} images are in train and in held_out; the first is "
                f"'{self.manifest.paths[both[0]]}'. An image has one part."
            )
        self.seen_labels(self.manifest.labels[self.held_out])  # refuses classes that are not trained on

    def _assert_disjoint(self, first: str, rows: Rows, second: str, others: Rows) -> None:
        labels = self.manifest.labels
        both = np.intersect1d(labels[rows], labels[others])
        if both.size:
            names = ", ".join(f"'{self.manifest.class_names[label]}'" for label in both[:5])
            raise ManifestError(
                f"{both.size} classes are in {first} and {second}: {names}. Splits must be class-disjoint."
            )

    def check_answerable(self, test: bool) -> None:
        """Refuse images of which none has another one to find.

        Args:
            test: whether the test images are searched; those of validation always are.

        Raises:
            ManifestError: naming the part.
        """
        labels = self.manifest.labels
        for name, queries, gallery in (
            ("validation", self.validation, self.validation),
            ("test", self.query if test else self.query[:0], self.gallery),
        ):
            occurring, counts = np.unique(labels[gallery], return_counts=True)
            enough = occurring[counts > np.isin(occurring, labels[np.intersect1d(queries, gallery)])]
            if len(queries) and not np.isin(labels[queries], enough).any():
                raise ManifestError(
                    f"None of the {len(queries)} {name} images has another image of its class to be found: "
                    "nothing could be measured. Retrieval needs classes with at least two images."
                )

    @property
    def query_is_gallery(self) -> bool:
        """Whether test images are searched among each other."""
        return np.array_equal(self.query, self.gallery)

    @property
    def parts(self) -> NDArray[np.str_]:
        """`(N,)` the part of each row: train, held_out, validation or test; empty where it has none."""
        parts = np.full(len(self.manifest), "", dtype="<U10")
        for name in ("train", "held_out", "validation"):
            parts[getattr(self, name)] = name
        parts[self.query] = parts[self.gallery] = "test"
        return parts

    @property
    def train_classes(self) -> Rows:
        """Labels of the manifest that are trained on, ascending."""
        return np.unique(self.manifest.labels[self.train])

    @property
    def num_classes(self) -> int:
        """Seen classes, C."""
        return len(self.train_classes)

    def seen_labels(self, labels: Rows) -> Rows:
        """The manifest's labels of training classes → `0 … C-1`.

        Raises:
            ManifestError: a label is of a class that is not trained on.
        """
        strange = np.setdiff1d(labels, self.train_classes)
        if strange.size:
            raise ManifestError(
                f"Class '{self.manifest.class_names[strange[0]]}' has no training images, so it has no seen "
                "label. Only training classes have one."
            )
        return np.searchsorted(self.train_classes, labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the manifest and every row list: equal fingerprints, equal splits."""
        digest = hashlib.sha256(self.manifest.content_hash.encode())
        for rows in (self.train, self.held_out, self.validation, self.query, self.gallery):
            digest.update(rows.astype("<i8").tobytes() + b"|")
        return digest.hexdigest()


def fixed(manifest: Manifest, *, seed: int, held_out_fraction: float) -> Split:
    """Train on every training class for a fixed number of epochs; the last epoch counts.

    Args:
        manifest: with roles.
        seed: of the draw of held-out images.
        held_out_fraction: share of each training class that is kept out of training (see `hold_out_images`).

    Raises:
        ValueError: the fraction is outside [0, 1).
    """
    return _split(manifest, np.empty(0, dtype=np.int64), seed, held_out_fraction)


def holdout(manifest: Manifest, *, seed: int, held_out_fraction: float, class_fraction: float) -> Split:
    """Keep a share of the *training* classes out, to choose the epoch and the hyper-parameters by.

    Args:
        manifest: with roles.
        seed: of both draws.
        held_out_fraction: as in `fixed`.
        class_fraction: share of the training classes that validates; at least one, never all.

    Raises:
        ValueError: a fraction is out of range, or there are fewer than two training classes.
    """
    if not 0 < class_fraction < 1:
        raise ValueError(f"protocol.class_fraction={class_fraction}: wanted a share between 0 and 1.")
    classes = _shuffled_classes(manifest, seed)
    count = min(max(1, round(class_fraction * len(classes))), len(classes) - 1)
    return _split(manifest, classes[:count], seed, held_out_fraction)


def folds(manifest: Manifest, *, seed: int, held_out_fraction: float, folds: int, fold: int) -> Split:
    """One of `folds` class-disjoint folds of the training classes validates (Musgrave et al. 2020).

    Args:
        manifest: with roles.
        seed: of both draws; the same for all folds.
        held_out_fraction: as in `fixed`.
        folds: how many folds.
        fold: which one validates, `0 … folds-1`.

    Raises:
        ValueError: there are fewer classes than folds, or no such fold.
    """
    classes = _shuffled_classes(manifest, seed)
    if not 2 <= folds <= len(classes):
        raise ValueError(
            f"protocol.folds={folds}: wanted between 2 and {len(classes)}, the number of training classes."
        )
    if not 0 <= fold < folds:
        raise ValueError(f"protocol.fold={fold}: choices are 0 … {folds - 1}.")
    return _split(manifest, classes[fold::folds], seed, held_out_fraction)


def _split(manifest: Manifest, validation_classes: Rows, seed: int, held_out_fraction: float) -> Split:
    roles, labels = manifest.roles, manifest.labels
    trains = roles == "train"
    validates = trains & np.isin(labels, validation_classes)
    held_out = hold_out_images(manifest, np.flatnonzero(trains & ~validates), seed, held_out_fraction)
    train = np.setdiff1d(np.flatnonzero(trains & ~validates), held_out)
    return Split(
        manifest=manifest,
        train=train,
        held_out=held_out,
        validation=np.flatnonzero(validates),
        query=np.flatnonzero((roles == "test") | (roles == "query")),
        gallery=np.flatnonzero((roles == "test") | (roles == "gallery")),
    )


def hold_out_images(manifest: Manifest, rows: Rows, seed: int, fraction: float) -> Rows:
    """Rows to keep out of training: a share of each class, at least `FEWEST_HELD_OUT` (see `_count`).

    Where classes are so small that this is far more than the share, only a draw of classes gives some.

    Raises:
        ValueError: the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"protocol.held_out_fraction={fraction}: wanted a share of at least 0 and below 1.")
    held: dict[int, Rows] = {}
    for label in np.unique(manifest.labels[rows] if fraction else []):
        images = rows[manifest.labels[rows] == label]
        if count := _count(len(images), fraction):
            held[label] = images[_order([manifest.paths[row] for row in images], seed, "seen")[:count]]
    if sum(map(len, held.values())) > MOST_HELD_OUT * fraction * len(rows):
        held, whole = _thinned(held, manifest, seed, fraction * len(rows)), held
        count = sum(map(len, held.values()))
        log.info(
            "Classes are small: %d of %d classes hold %d of %d images out (%.1f %%).",
            *(len(held), len(whole), count, len(rows), 100 * count / len(rows)),
        )
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *held.values()]))


def _count(images: int, fraction: float) -> int:
    """Images of a class that are held out: the share, but at least 4 if as many stay; else 2; else 0."""
    share = round(fraction * images)
    counts = ((least, max(least, min(share, images - least))) for least in FEWEST_HELD_OUT)
    return next((count for least, count in counts if images - count >= least), 0)


def _thinned(held: dict[int, Rows], manifest: Manifest, seed: int, wanted: float) -> dict[int, Rows]:
    """The held-out images of as many classes, in the order of a draw, as it takes to have enough."""
    labels = np.array(list(held))
    drawn = labels[_order([manifest.class_names[label] for label in labels], seed, "seen classes")]
    before = np.cumsum([0, *(len(held[label]) for label in drawn)])[:-1]
    return {label: held[label] for label, count in zip(drawn, before, strict=True) if count < wanted}


def _shuffled_classes(manifest: Manifest, seed: int) -> Rows:
    labels = np.unique(manifest.labels[manifest.roles == "train"])
    if len(labels) < 2:
        raise ValueError(f"There are {len(labels)} training classes: holding classes out needs at least 2.")
    return labels[_order([manifest.class_names[label] for label in labels], seed, "classes")]


def _order(keys: Sequence[Any], seed: int, purpose: str) -> Rows:
    """A shuffle that is the same on any system and in any version of Python: by the hash of each key."""

    def digest(key: Any) -> bytes:
        return hashlib.sha256(f"{purpose}|{seed}|{key}".encode("utf-8", "surrogateescape")).digest()

    return np.array(sorted(range(len(keys)), key=lambda index: digest(keys[index])), dtype=np.int64)
