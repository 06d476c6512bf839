"""Which runs stand beside which: cells, methods and seeds, what is there twice and what is missing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unseen.report.runs import Run, Runs
from unseen.report.settings import changes


@dataclass(frozen=True)
class Cell:
    """What two runs must share to be compared, but for the seed.

    Args:
        name: `cub · triplet`; with the first digits of the split where the same factors have several.
        factors: group or key → value, such as `data` → `cub`.
        split: fingerprint of the split (hex).
    """

    name: str
    factors: dict[str, str]
    split: str


@dataclass(frozen=True)
class Missing:
    """A run that the grid lacks: another method has this seed in this cell.

    Args:
        cell: its name.
        method: its name.
        seed: of training.
        reason: in words, such as the error of the run that failed.
        folder: of the run that failed or has no value; none without one.
    """

    cell: str
    method: str
    seed: int
    reason: str
    folder: Path | None


@dataclass(frozen=True)
class UnequalSplits:
    """Runs that were not paired, because they were not tested on the same split.

    Args:
        factors: that they share.
        method: its name.
        reference: name of the reference.
        splits: fingerprints of the method's.
        reference_splits: fingerprints of the reference's.
    """

    factors: dict[str, str]
    method: str
    reference: str
    splits: tuple[str, ...]
    reference_splits: tuple[str, ...]


@dataclass(frozen=True)
class Duplicate:
    """Several runs of the same settings and seed: the newest counts.

    Args:
        cell: its name.
        method: its name.
        seed: of training.
        kept: folder of the newest.
        dropped: folders of the others.
    """

    cell: str
    method: str
    seed: int
    kept: Path
    dropped: tuple[Path, ...]


@dataclass(frozen=True)
class Grid:
    """The finished runs in their places.

    Args:
        compare: group or dotted key that tells the methods apart.
        cells: by their names.
        methods: all of them, the reference first.
        places: cell's name → method → seed → run.
        duplicates: what was run twice.
    """

    compare: str
    cells: tuple[Cell, ...]
    methods: tuple[str, ...]
    places: dict[str, dict[str, dict[int, Run]]]
    duplicates: tuple[Duplicate, ...]

    def runs(self, cell: Cell, method: str) -> dict[int, Run]:
        """Seed → run, in the order of seeds."""
        return self.places[cell.name].get(method, {})

    def pairs(self, cell: Cell, method: str) -> list[tuple[Run, Run]]:
        """Runs of the reference and of a method with the same seed, in the order of seeds."""
        theirs, ours = self.runs(cell, self.methods[0]), self.runs(cell, method)
        return [(theirs[seed], ours[seed]) for seed in theirs if seed in ours]


def make_grid(runs: Runs, compare: str, reference: str, factors: Sequence[str]) -> Grid:
    """Sort the finished runs into cells, methods and seeds.

    Args:
        runs: the unfinished ones only count in the names of cells.
        compare: group or dotted key that tells the methods apart.
        reference: one of the methods.
        factors: groups or dotted keys that make a cell, beside the split.

    Raises:
        ValueError: two runs of one place have different settings.
    """
    place = _placing(runs, factors)
    names = _cell_names(map(place, (*runs.finished, *runs.unfinished)))
    found: dict[str, dict[str, dict[int, list[Run]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    cells: dict[str, Cell] = {}
    for run in runs.finished:
        name = names[place(run)]
        cells.setdefault(name, Cell(name, {key: run.value(key) for key in factors}, run.split))
        found[name][run.value(compare)][run.seed].append(run)
    duplicates: list[Duplicate] = []
    places: dict[str, dict[str, dict[int, Run]]] = {}
    for name in sorted(cells, key=_natural):
        places[name] = {}
        for method, seeds in found[name].items():
            places[name][method] = {
                seed: _newest(seeds[seed], name, method, list(factors), duplicates) for seed in sorted(seeds)
            }
    others = sorted({method for cell in places.values() for method in cell} - {reference}, key=_natural)
    return Grid(
        compare=compare,
        cells=tuple(cells[name] for name in places),
        methods=(reference, *others),
        places=places,
        duplicates=tuple(duplicates),
    )


def unequal_splits(grid: Grid) -> list[UnequalSplits]:
    """Methods that share factors with the reference, and no split."""
    splits: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    factors: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in grid.cells:
        key = tuple(cell.factors.values())
        factors[key] = cell.factors
        for method in grid.places[cell.name]:
            splits[key][method].append(cell.split)
    reference, *others = grid.methods
    return [
        UnequalSplits(factors[key], method, reference, tuple(of[method]), tuple(of[reference]))
        for key, of in splits.items()
        for method in others
        if reference in of and method in of and not set(of[method]) & set(of[reference])
    ]


def missing_runs(
    grid: Grid, runs: Runs, factors: Sequence[str], split: str, metrics: Sequence[str]
) -> list[Missing]:
    """What the grid lacks: seeds of a cell that only some methods have, and runs without a value.

    Args:
        grid: of the finished runs.
        runs: whose unfinished ones say why something is missing.
        factors: that make a cell.
        split: of the record's metrics.
        metrics: that are compared.
    """
    place = _placing(runs, factors)
    names = _cell_names(map(place, (*runs.finished, *runs.unfinished)))
    stopped = {(names[place(run)], run.value(grid.compare), run.seed): run for run in runs.unfinished}
    refused = {
        (cell.name, method)
        for cell in grid.cells
        for unequal in unequal_splits(grid)
        for method in (unequal.method, unequal.reference)
        if cell.factors == unequal.factors and method not in grid.places[cell.name]
    }
    seeds: dict[str, set[int]] = defaultdict(set)
    for cell in grid.cells:
        for of_method in grid.places[cell.name].values():
            seeds[cell.name] |= of_method.keys()
    for name, _, seed in stopped:
        seeds[name].add(seed)
    methods = [*grid.methods, *sorted({method for _, method, _ in stopped} - set(grid.methods))]
    found = []
    for name in sorted(seeds, key=_natural):
        for method in methods:
            for seed in sorted(seeds[name]):
                run = grid.places.get(name, {}).get(method, {}).get(seed)
                stop = stopped.get((name, method, seed))
                if run is not None:
                    found += _without_value(run, name, method, split, metrics)
                elif stop is not None or (name, method) not in refused:
                    found.append(
                        Missing(name, method, seed, _why(stop), None if stop is None else stop.folder)
                    )
    return found


def _placing(runs: Runs, factors: Sequence[str]) -> Callable[[Run], tuple[str, ...]]:
    """Run → its factors and split. One that was refused before its images were split was to have the split
    of the finished runs with its factors, where they have one."""
    splits: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs.finished:
        splits[tuple(map(run.value, factors))].add(run.split)

    def place(run: Run) -> tuple[str, ...]:
        values = tuple(map(run.value, factors))
        known = splits.get(values, set())
        return (*values, next(iter(known)) if not run.split and len(known) == 1 else run.split)

    return place


def _cell_names(places: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Factors and split → name, which tells the split where the same factors have several."""
    places = set(places)
    several: dict[tuple[str, ...], int] = defaultdict(int)
    for *values, _ in places:
        several[tuple(values)] += 1
    parts: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        *values, split = place
        parts[place] = [*values, *([f"split {split[:8]}"] if several[tuple(values)] > 1 else [])]
    names = {place: " · ".join(words) or f"split {place[-1][:8]}" for place, words in parts.items()}
    alike = Counter(names.values())  # where a value holds the dot itself
    return {
        place: name if alike[name] == 1 else json.dumps(parts[place], ensure_ascii=False)
        for place, name in names.items()
    }


def _newest(runs: list[Run], cell: str, method: str, factors: list[str], duplicates: list[Duplicate]) -> Run:
    """Of runs in one place, the one that finished last; all must have the same settings."""
    *dropped, kept = sorted(runs, key=lambda run: (run.record.finished, run.folder))
    for run in dropped:
        if differing := changes(run, kept):
            words = [f"{key} ({change.before}, {change.after})" for key, change in differing.items()]
            raise ValueError(
                f"Two runs of '{method}' in '{cell}' with seed {kept.seed} differ in {'; '.join(words[:5])}: "
                f"'{run.folder}' and '{kept.folder}'. Name the folders of the runs you mean"
                f"{_remedy(run, kept, list(differing), factors)}."
            )
    if dropped:
        folders = tuple(run.folder for run in dropped)
        duplicates.append(Duplicate(cell, method, kept.seed, kept.folder, folders))
    return kept


def _remedy(one: Run, other: Run, differing: Sequence[str], factors: Sequence[str]) -> str:
    """The end of a sentence: a key that would tell the two runs apart."""
    telling = [key for key in ("ablation", *differing) if one.value(key) != other.value(key)]
    return f", or let a key make cells: cells=[{','.join([*factors, telling[0]])}]" if telling else ""


def _without_value(run: Run, cell: str, method: str, split: str, metrics: Sequence[str]) -> list[Missing]:
    lacking = [metric for metric in metrics if run.metric(split, metric) != run.metric(split, metric)]
    reason = f"no value of {', '.join(lacking)} on {split}"
    return [Missing(cell, method, run.seed, reason, run.folder)] if lacking else []


def _why(stopped: Run | None) -> str:
    if stopped is None:
        return "no run"
    return f"{stopped.record.status}: {stopped.record.error or 'no error was kept'}"


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before words."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
