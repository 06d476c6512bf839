"""What is wrong with a data set: for people, for programs, and as a list for `data.exclude`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unseen.data.inspect.duplicates import Rows
from unseen.data.manifest import Manifest
from unseen.files import replacing

ERRORS = ("unreadable", "leakage")
"""What must not go into training unless it is allowed by name."""
PARTS = ("", "train", "held_out", "validation", "test")
"""What rows are for, the later the more it matters that nobody has seen them; see `Split.parts`."""
LISTED = 50
"""Entries that a section of the readable report shows; `report.json` has all."""


@dataclass(frozen=True)
class Report:
    """What `preflight` found. Rows are positions in the manifest.

    Args:
        manifest: what was looked at.
        broken: row → what is wrong with the file.
        unusual: kind (`extreme aspect`, `grey`, `CMYK`) → rows.
        exact: groups of rows with the same pixels.
        near: groups of rows with almost the same pixels, exact duplicates among them included.
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
