"""Look at every image before anything is trained on it: broken files, odd ones, and the same image twice.

Exact duplicates are images whose decoded pixels are equal, however they are stored. Near duplicates (saved
again, resized, slightly cropped) have perceptual hashes (pHash: 64 signs of low frequencies) that differ in a
few bits, and small copies that differ by a small share of their contrast: hashes alone also pair different
drawings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.progress import Progress as ProgressBar
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unseen.data.images import Files, ImageError, PassingError, Pixels, opened
from unseen.data.manifest import Manifest
from unseen.files import replacing

THUMBNAIL = 16
"""Side of the small copies that near duplicates are compared by."""
BLOCK = 2048
"""Hashes compared at a time: a block of `BLOCK × BLOCK` distances takes 16 MB, its pairs up to 64 MB."""
ERRORS = ("unreadable", "leakage")
"""What must not go into training unless it is allowed by name."""
PARTS = ("", "train", "held_out", "validation", "test")
"""What rows are for, the later the more it matters that nobody has seen them; see `Split.parts`."""
LISTED = 50
"""Entries that a section of the readable report shows; `report.json` has all."""

Rows = tuple[int, ...]
Progress = Callable[[int], None]
"""Told the number of images looked at."""


class Look(NamedTuple):
    """What one image turned out to be; the fields after `problem` are empty if it has one."""

    problem: str | None
    mode: str = ""
    width: int = 0
    height: int = 0
    grey: bool = False
    digest: bytes = b""
    hash: int = 0
    thumbnail: NDArray[np.uint8] = np.zeros((THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Report:
    """What `preflight` found. Rows are positions in the manifest.

    Args:
        manifest: what was looked at.
        broken: row → what is wrong with the file.
        unusual: kind (`extreme aspect`, `grey`, `CMYK`) → rows.
        exact: groups of rows with the same pixels.
        near: groups of rows with almost the same look, exact duplicates among them included.
        small_classes: class name → what it has too few of.
        allow: names out of `ERRORS` that are no error here.
        excluded: paths that were left out before.
        parts: `(N,)` out of `PARTS`; `None`: by the manifest's roles, train or test.
    """

    manifest: Manifest
    broken: dict[int, str]
    unusual: dict[str, Rows]
    exact: list[Rows]
    near: list[Rows]
    small_classes: dict[str, str]
    allow: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    parts: NDArray[np.str_] | None = None

    @cached_property
    def _rank(self) -> NDArray[np.int64]:
        """`(N,)` place of each row's part in `PARTS`."""
        by_role = np.where(self.manifest.roles == "train", "train", "test")
        parts = by_role if self.parts is None else self.parts
        return np.array([PARTS.index(part) for part in parts.tolist()])

    def crosses(self, group: Rows) -> bool:
        """Whether a group has rows in several parts."""
        return len({int(self._rank[row]) for row in group} - {PARTS.index("")}) > 1

    def disagrees(self, group: Rows) -> bool:
        """Whether a group has rows of more than one class."""
        return len({int(self.manifest.labels[row]) for row in group}) > 1

    @cached_property
    def leaks(self) -> list[Rows]:
        """Groups of the same image in training and in test, and of the very same in training and validation.

        Near duplicates among training classes, and any of a class's own images that are held out, are common
        in photographs taken in one go: they are listed, but are no leak.
        """
        test = PARTS.index("test")
        exact = [group for group in self.exact if self._highest(group) >= PARTS.index("validation")]
        near = [group for group in self.near if self._highest(group) == test]
        return [group for group in (*exact, *near) if self.crosses(group)]

    def part(self, row: int) -> str:
        """What a row is for, in a word: its role in a test, else its part."""
        part = PARTS[self._rank[row]]
        return str(self.manifest.roles[row]) if part in ("test", "") else part

    def _highest(self, group: Rows) -> int:
        """The part of a group that matters most."""
        return max(int(self._rank[row]) for row in group)

    @property
    def quarantine(self) -> list[str]:
        """Paths to leave out: those left out before, what cannot be read, and training copies of what leaks.

        Of a leak, the copies that test (else those that validate) are never among them, so that a benchmark's
        test set stays what it is: a picture that holds objects of both has to be left out by hand.
        """
        paths, test = self.manifest.paths, PARTS.index("test")
        tested = {paths[row] for row in np.flatnonzero(self._rank == test)}
        copies = {row for group in self.leaks for row in group if self._rank[row] < self._highest(group)}
        rows = set(self.broken) | {row for row in copies if paths[row] not in tested}
        found = [paths[row] for row in sorted(rows)]
        return list(dict.fromkeys([*self.excluded, *found]))

    @property
    def errors(self) -> list[str]:
        """What must not go into training, in words; empty if nothing or all of it is allowed."""
        found = {
            "unreadable": f"{len(self.broken):,} images cannot be read" if self.broken else "",
            "leakage": " and ".join(
                f"{count:,} images are in training and in {PARTS[part]}"
                for part, count in sorted(Counter(map(self._highest, self.leaks)).items(), reverse=True)
            ),
        }
        return [
            f"{what}. Leave out what quarantine.txt lists (data.exclude), or allow it: check.allow=[{name}]"
            for name, what in found.items()
            if what and name not in self.allow
        ]

    def write(self, folder: Path) -> None:
        """Write `report.md` for people, `report.json` for programs, `quarantine.txt` for `data.exclude`."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "report.md", self.markdown())
        _write(folder / "report.json", json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n")
        _write(folder / "quarantine.txt", "".join(f"{path}\n" for path in self.quarantine))

    def plain(self) -> dict[str, object]:
        """The findings as plain data, with paths instead of rows."""
        paths, leaks = self.manifest.paths, set(self.leaks)

        def named(groups: list[Rows]) -> list[dict[str, object]]:
            return [
                {
                    "paths": [paths[row] for row in group],
                    "across_split": self.crosses(group),
                    "leak": group in leaks,
                    "across_classes": self.disagrees(group),
                }
                for group in groups
            ]

        return {
            "manifest": self.manifest.content_hash,
            "root": str(self.manifest.root),
            "images": len(self.manifest),
            "broken": {paths[row]: what for row, what in self.broken.items()},
            "unusual": {kind: [paths[row] for row in rows] for kind, rows in self.unusual.items()},
            "exact_duplicates": named(self.exact),
            "near_duplicates": named(self.near),
            "small_classes": self.small_classes,
            "quarantine": self.quarantine,
        }

    def markdown(self) -> str:
        """The findings to read."""
        return "\n".join(_lines(self)) + "\n"


def preflight(
    manifest: Manifest,
    *,
    images_per_class: int,
    aspect: float,
    distance: int,
    difference: float,
    workers: int | None,
    allow: Sequence[str],
    crop_to_box: bool = False,
    excluded: Sequence[str] = (),
    parts: NDArray[np.str_] | None = None,
    progress: Progress = lambda done: None,
) -> Report:
    """Decode every image and report what is wrong with the set.

    Args:
        manifest: the images.
        images_per_class: how many a training class should have for the sampler.
        aspect: longer over shorter side from which a shape is extreme.
        distance: most bits (of 64) in which hashes of near duplicates differ.
        difference: most by which their small copies differ, as a share of their contrast.
        workers: threads that decode; `None`: one for each core.
        allow: names out of `ERRORS` that are no error here.
        crop_to_box: whether training cuts images to their boxes.
        excluded: paths that were left out before, which the new list for `data.exclude` has to name again.
        parts: see `Report`.
        progress: is told how far it is.

    Raises:
        ValueError: `allow` has another name.
        PassingError: an image cannot be read, and not the image is the cause.
    """
    unknown = sorted(set(allow) - set(ERRORS))
    if unknown:
        raise ValueError(f"check.allow names '{unknown[0]}'. Choose from {', '.join(ERRORS)}.")
    looks = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        look = partial(look_at, Files(manifest, crop_to_box=crop_to_box))
        for done, seen in enumerate(pool.map(look, range(len(manifest))), start=1):
            looks.append(seen)
            progress(done)
    whole = np.array([row for row, seen in enumerate(looks) if seen.problem is None], dtype=np.int64)
    unusual = {
        "extreme aspect": [row for row in whole if _aspect(looks[row]) >= aspect],
        "grey": [row for row in whole if looks[row].grey],
        "CMYK": [row for row in whole if looks[row].mode == "CMYK"],
    }
    exact = exact_duplicates([looks[row].digest for row in whole])
    near = near_duplicates(
        np.array([looks[row].hash for row in whole], dtype=np.uint64),
        np.stack([looks[row].thumbnail for row in whole]) if whole.size else np.zeros((0, 1, 1, 3), np.uint8),
        distance,
        difference,
    )
    same = {frozenset(group) for group in exact}
    return Report(
        manifest=manifest,
        broken={row: seen.problem for row, seen in enumerate(looks) if seen.problem is not None},
        unusual={kind: tuple(map(int, rows)) for kind, rows in unusual.items()},
        exact=[_rows(whole, group) for group in exact],
        near=[_rows(whole, group) for group in near if frozenset(group) not in same],
        small_classes=small_classes(manifest, images_per_class),
        allow=tuple(allow),
        excluded=tuple(excluded),
        parts=parts,
    )


def watched_preflight(
    manifest: Manifest, options: Mapping[str, Any], console: Console, **more: Any
) -> Report:
    """`preflight` with the keys of `conf/check` and more arguments, under a progress bar."""
    columns = (*ProgressBar.get_default_columns(), MofNCompleteColumn())
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task("Looking at images", total=len(manifest))
        return preflight(manifest, **options, **more, progress=lambda done: bar.update(task, completed=done))


def _rows(whole: NDArray[np.int64], group: Rows) -> Rows:
    return tuple(int(whole[position]) for position in group)


def look_at(images: Files, row: int) -> Look:
    """Decode one image as training would, and describe it.

    Raises:
        PassingError: it cannot be read, and not the image is the cause.
    """
    path = images.manifest.absolute(row)
    try:
        pixels = np.ascontiguousarray(images[row])  # an object is cut out of a larger picture
        with opened(path) as image:
            mode = image.mode
    except PassingError:
        raise
    except ImageError as error:
        return Look(_problem(path, error.__cause__ or error))
    return _describe(mode, pixels)


def _problem(path: Path, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    # Pillow's words for most formats: 'image file is truncated (n bytes not processed)'.
    kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
    return f"{kind}: {error}"


def _describe(mode: str, pixels: Pixels) -> Look:
    height, width = pixels.shape[:2]
    # The hash looks at 32 × 32 pixels; from a box-filtered copy it comes four times as fast.
    small = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX)
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return Look(
        problem=None,
        mode=mode,
        width=width,
        height=height,
        # JPEG brings channels apart by a level or two in an image that has no colour.
        grey=bool(np.ptp(thumbnail.astype(np.int16), axis=-1).max() <= 2),
        digest=f"{width}x{height}:".encode() + hashlib.sha1(pixels.data, usedforsecurity=False).digest(),
        hash=int(str(imagehash.phash(small)), 16),
        thumbnail=thumbnail,
    )


def _aspect(look: Look) -> float:
    return max(look.width, look.height) / min(look.width, look.height)


def exact_duplicates(digests: Sequence[bytes]) -> list[Rows]:
    """Groups of positions with equal digests."""
    positions: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        positions.setdefault(digest, []).append(position)
    return [tuple(group) for group in positions.values() if len(group) > 1]


def near_duplicates(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], distance: int, difference: float
) -> list[Rows]:
    """Groups of positions that are linked by near-duplicate pairs.

    Small copies a, b differ by ‖a − b‖ / min(‖a − mean(a)‖, ‖b − mean(b)‖). Photographs that were saved
    again come to about 0.02, slightly cropped ones to 0.1, two drawings of one character to more.

    Args:
        hashes: `(N,)` 64-bit perceptual hashes.
        thumbnails: `(N, h, w, 3)` small copies.
        distance: most bits in which the hashes of a pair differ.
        difference: most by which the copies of a pair differ.
    """
    if not len(hashes):
        return []
    # White pages are one page: each look is compared once, or n copies would make n² pairs.
    flat = thumbnails.reshape(len(hashes), -1)
    looks = np.concatenate([hashes[:, None].view(np.uint8), flat], axis=1)
    _, kept, look = np.unique(looks.view(f"V{looks.shape[1]}"), return_index=True, return_inverse=True)
    copies = flat[kept].astype(np.float32)
    contrasts = np.linalg.norm(copies - copies.mean(axis=1, keepdims=True), axis=1)
    component = np.arange(len(kept))
    for first, second in _close_pairs(hashes[kept], distance):
        apart = component[first] != component[second]
        first, second = first[apart], second[apart]
        weaker = np.minimum(contrasts[first], contrasts[second])
        close = np.linalg.norm(copies[first] - copies[second], axis=1) <= difference * weaker
        component = _joined(component, first[close], second[close])
    return _groups_of(component[look.ravel()])


def _joined(
    component: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The component of each position after pairs were linked, some at a time, as all may be too many."""
    if not len(first):
        return component
    size = len(component)
    links = coo_matrix((np.ones(len(first)), (component[first], component[second])), shape=(size, size))
    _, merged = connected_components(links, directed=False)
    return np.asarray(merged[component], dtype=np.int64)


def _groups_of(component: NDArray[np.int64]) -> list[Rows]:
    """Positions that share a component with others, by the first of each."""
    _, place, count = np.unique(component, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for position in np.flatnonzero(count[place] > 1):
        groups.setdefault(int(component[position]), []).append(int(position))
    return [tuple(group) for group in groups.values()]


def _close_pairs(
    hashes: NDArray[np.uint64], distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs `first < second` of hashes at most `distance` bits apart, some thousands at a time.

    With bits as ±1, the inner product of two hashes is 64 − 2 · (bits that differ): all distances of a block
    are one matrix product.
    """
    bits = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    for top in range(0, len(bits), BLOCK):
        for left in range(top, len(bits), BLOCK):
            agreement = bits[top : top + BLOCK] @ bits[left : left + BLOCK].T
            first, second = np.nonzero(agreement >= 64 - 2 * distance)
            first, second = first + top, second + left
            ordered = first < second
            first, second = first[ordered], second[ordered]
            for start in range(0, len(first), BLOCK):
                yield first[start : start + BLOCK], second[start : start + BLOCK]


def small_classes(manifest: Manifest, images_per_class: int) -> dict[str, str]:
    """Classes that the sampler or the evaluation can make little of, and why."""
    train, test, query, gallery = (
        Counter(manifest.labels[manifest.roles == role].tolist())
        for role in ("train", "test", "query", "gallery")
    )
    found = {
        label: f"{count} to train on, {images_per_class} wanted in a batch"
        for label, count in sorted(train.items())
        if count < images_per_class
    }
    found |= {label: "one test image: it finds nothing" for label, count in sorted(test.items()) if count < 2}
    found |= dict.fromkeys(
        sorted(query.keys() - gallery.keys()), "no gallery image: its queries find nothing"
    )
    return {manifest.class_names[label]: why for label, why in found.items()}


def _lines(report: Report) -> Iterable[str]:
    manifest, paths, leaks = report.manifest, report.manifest.paths, set(report.leaks)
    yield f"# {len(manifest):,} images of {len(set(manifest.labels.tolist())):,} classes in `{manifest.root}`"
    yield ""
    yield "| found | number |"
    yield "|---|---|"
    yield f"| unreadable | {len(report.broken):,} |"
    for kind, rows in report.unusual.items():
        yield f"| {kind} | {len(rows):,} |"
    for name, groups in (("exact duplicates", report.exact), ("near duplicates", report.near)):
        yield f"| {name} (groups) | {len(groups):,} |"
        yield f"| … across the split | {sum(map(report.crosses, groups)):,} |"
        yield f"| … leaks | {len(leaks.intersection(groups)):,} |"
        yield f"| … under different labels | {sum(map(report.disagrees, groups)):,} |"
    yield f"| classes that are too small | {len(report.small_classes):,} |"
    yield f"| to be left out (`quarantine.txt`) | {len(report.quarantine):,} |"
    yield from _section("Unreadable", [f"`{paths[row]}`: {what}" for row, what in report.broken.items()])
    for kind, rows in report.unusual.items():
        yield from _section(kind.capitalize(), [f"`{paths[row]}`" for row in rows])
    for name, groups in (("Exact duplicates", report.exact), ("Near duplicates", report.near)):
        # What matters most comes first.
        ordered = sorted(groups, key=lambda group: (group not in leaks, not report.disagrees(group)))
        yield from _section(name, [_group_line(report, group, group in leaks) for group in ordered])
    small = [f"{name}: {why}" for name, why in report.small_classes.items()]
    yield from _section("Classes that are too small", small)


def _section(title: str, entries: list[str]) -> Iterator[str]:
    if not entries:
        return
    yield f"\n## {title} ({len(entries):,})\n"
    yield from (f"- {entry}" for entry in entries[:LISTED])
    if len(entries) > LISTED:
        yield f"- … and {len(entries) - LISTED:,} more, in `report.json`"


def _group_line(report: Report, group: Rows, leaks: bool) -> str:
    manifest = report.manifest
    members = [
        f"`{manifest.paths[row]}` ({report.part(row)}, {manifest.class_names[manifest.labels[row]]})"
        for row in group
    ]
    remark = "**LEAK** " if leaks else "**across the split** " if report.crosses(group) else ""
    remark += "**labels differ** " if report.disagrees(group) else ""
    return remark + " = ".join(members)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
