"""What must be read beside the numbers of a comparison, in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from unseen.report.comparison import Comparison
from unseen.report.grid import Missing
from unseen.report.settings import Setting

LONGEST_REASON = 160
"""Characters of an error that are shown."""


def notes(comparison: Comparison) -> list[str]:
    """One sentence or two for each thing to know; each kind only where there is something to say."""
    found = [
        *_intervals(comparison),
        *_over_cells(comparison),
        *_parts(comparison),
        *_beside(comparison),
        *_unequal(comparison),
        *_missing(comparison.missing),
        *_duplicates(comparison),
        *_machines(comparison),
    ]
    # What was typed may hold anything, also ends of lines, which end a comment and an item of a list.
    return [" ".join(note.split()) for note in found]


def points(share: float, digits: int = 2) -> str:
    """A share in points, without trailing zeros: 0.005 → `0.5`."""
    return f"{100 * share:.{digits}f}".rstrip("0").rstrip(".")


def _intervals(comparison: Comparison) -> Iterator[str]:
    level, margin = points(comparison.level), points(comparison.margin)
    yield (
        f"Intervals are of {level} %, Student's t over seeds, paired by seed. Better and worse: by more than "
        f"the margin of {margin} points; equivalent: within it."
    )
    if any(one.interval is None for one in comparison.differences):
        yield "One seed, or differences that are all equal, give no interval: cannot tell, not no difference."
    if any(one.class_interval is not None for one in comparison.differences):
        yield (
            "Over classes: the interval of the mean difference of test classes, each counted once, with the "
            "seeds as they are."
        )


def _over_cells(comparison: Comparison) -> Iterator[str]:
    several = [one for one in comparison.overall if one.cells > 1]
    if not several:
        if comparison.differences:
            yield "One cell: it says nothing about other data sets or losses."
        return
    count = len(comparison.overall)
    smallest = {one.cells: one.smallest_p for one in several}
    words = ", ".join(f"{p:.2g} with {cells} cells" for cells, p in sorted(smallest.items()))
    drawn = "" if all(one.is_exact for one in several) else " The sign flips were drawn, not all counted."
    yield (
        "Over cells: a cell counts once, seeds in it do not. up: cells that improved; P: probability that a "
        f"run beats one of {comparison.reference}; p: of the sign-flip test, at least {words}; Holm: p "
        f"corrected for {count} comparisons. Better and worse need p ≤ {1 - comparison.level:.2g} after it, "
        f"so at least {_cells_needed(count, 1 - comparison.level)} cells, fewer beside clearer ones.{drawn}"
    )


def _cells_needed(comparisons: int, level: float) -> int:
    """Cells from which the smallest p of so many comparisons passes the first step of Holm's correction."""
    return 1 + math.ceil(math.log2(comparisons / level))


def _parts(comparison: Comparison) -> Iterator[str]:
    for method in comparison.methods[1:]:
        parts = [
            f"{one.key} {one.reference} → {one.value}"
            for one in comparison.settings
            if one.is_part and not one.is_within and one.method == method
        ]
        if parts:
            yield f"{method} is {comparison.reference} with {', '.join(parts)}."


def _beside(comparison: Comparison) -> Iterator[str]:
    between, within = (
        [
            one
            for one in comparison.settings
            if one.is_within == is_within and (one.is_within or not one.is_part)
        ]
        for is_within in (False, True)
    )
    for method in dict.fromkeys(one.method for one in between):
        found = [_change(one) for one in between if one.method == method]
        yield (
            f"{method} and {comparison.reference} differ also in {'; '.join(found)}. "
            "That is in the difference too."
        )
    for method in dict.fromkeys(one.method for one in within):
        found = [_change(one) for one in within if one.method == method]
        yield f"Runs of {method} in one cell differ from seed to seed in {'; '.join(found)}."


def _change(setting: Setting) -> str:
    share = "every pair" if setting.pairs == setting.of else f"{setting.pairs} of {setting.of} pairs"
    return f"{setting.key} ({setting.reference} → {setting.value}, in {share})"


def _unequal(comparison: Comparison) -> Iterator[str]:
    for one in comparison.unequal:
        ours, theirs = (
            ", ".join(split[:8] for split in splits) for splits in (one.splits, one.reference_splits)
        )
        where = " · ".join(one.factors.values())
        yield (
            f"{where}: not paired, the splits differ: {one.method} has {ours}, {one.reference} has {theirs}. "
            "Equal data.*, protocol.* and protocol.seed make equal splits."
        )


def _missing(missing: Sequence[Missing]) -> Iterator[str]:
    seeds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for one in missing:
        seeds[one.cell, one.method, one.reason].append(one.seed)
    for (cell, method, reason), of in seeds.items():
        which = f"seed{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}"
        yield f"Missing: {cell}, {method}, {which}: {_short(reason)}"


def _short(reason: str) -> str:
    """One line of what may be a long message."""
    words = " ".join(reason.split())
    return f"{words.removesuffix('.')}." if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]} …"


def _duplicates(comparison: Comparison) -> Iterator[str]:
    for one in comparison.duplicates:
        dropped = ", ".join(f"'{folder}'" for folder in one.dropped)
        yield (
            f"{one.cell}, {one.method}, seed {one.seed} was run more than once with the same settings: "
            f"'{one.kept}' finished last and counts, not {dropped}."
        )


def _machines(comparison: Comparison) -> Iterator[str]:
    machines = sorted({machine for one in comparison.costs for machine in one.machines})
    if len(machines) > 1:
        yield f"Speeds and times are of several machines ({'; '.join(machines)}) and do not compare."
