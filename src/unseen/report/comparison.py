"""One comparison of methods: paired differences, what they allow to say, what is missing, what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unseen.report.checks import check_keys, check_methods, check_metrics, check_numbers
from unseen.report.grid import (
    Cell,
    Duplicate,
    Grid,
    Missing,
    UnequalSplits,
    make_grid,
    missing_runs,
    unequal_splits,
)
from unseen.report.runs import Run, Runs
from unseen.report.settings import Setting, setting_differences
from unseen.report.statistics import (
    TINY,
    Interval,
    SignFlip,
    Verdict,
    holm,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_test,
    t_interval,
    verdict,
)


@dataclass(frozen=True)
class Point:
    """One run's value.

    Args:
        seed: of training.
        value: of the metric, as in the record (a share, not percent).
        folder: of the run.
    """

    seed: int
    value: float
    folder: Path


@dataclass(frozen=True)
class Result:
    """One method in one cell, by one metric.

    Args:
        cell: its name.
        method: its name.
        metric: its key in the record.
        points: of every seed, in the order of seeds.
        mean: over seeds.
        interval: t interval over seeds; none for one seed.
        gap: mean generalisation gap (seen − unseen); NaN where it was not measured.
        untrained: mean of the untrained features on the unseen classes; NaN where it was not measured.
    """

    cell: str
    method: str
    metric: str
    points: tuple[Point, ...]
    mean: float
    interval: Interval | None
    gap: float
    untrained: float


@dataclass(frozen=True)
class Difference:
    """One method less the reference in one cell, by one metric, paired by seed.

    Args:
        cell: its name.
        method: its name.
        metric: its key in the record.
        seeds: that both have.
        values: `method − reference` of each seed.
        mean: of the values.
        interval: paired t interval over seeds; none for one seed, or where all values are equal.
        verdict: the interval against the margin.
        class_mean: mean over test classes of the difference (each class counts once, seeds averaged); NaN
            without values of classes.
        class_interval: of `class_mean`, over test classes; none with fewer than two.
        classes: number of test classes.
    """

    cell: str
    method: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    verdict: Verdict
    class_mean: float
    class_interval: Interval | None
    classes: int


@dataclass(frozen=True)
class Overall:
    """One method less the reference over all cells that have both, by one metric; a cell counts once.

    Args:
        method: its name.
        metric: its key in the record.
        cells: number of cells.
        mean: of the cells' mean differences.
        interquartile_mean: of the same, without the quarter at either end.
        interval: t interval over cells; none for one cell.
        improved: share of cells with a mean difference in the method's favour.
        probability: that a run of the method beats a run of the reference, mean over cells (ties count half).
        p_value: of the sign-flip test over cells, two-sided.
        p_holm: the same after Holm's correction for all the comparisons of methods and metrics.
        smallest_p: that so many cells can give, before Holm's correction.
        is_exact: whether all sign flips were counted, or a sample of them was drawn.
        verdict: of interval and `p_holm` together.
    """

    method: str
    metric: str
    cells: int
    mean: float
    interquartile_mean: float
    interval: Interval | None
    improved: float
    probability: float
    p_value: float
    p_holm: float
    smallest_p: float
    is_exact: bool
    verdict: Verdict


@dataclass(frozen=True)
class Cost:
    """What one method took in one cell. Speeds and durations compare only on the same machine.

    Args:
        cell: its name.
        method: its name.
        images_per_second: in training, median over seeds; NaN where it was not measured.
        seconds: of training, median over seeds.
        host_bytes: most memory of any of its runs.
        accelerator_bytes: most memory on a GPU; none without one.
        parameters: trained parameters of the embedder.
        machines: GPUs, or else the processors, of its runs.
    """

    cell: str
    method: str
    images_per_second: float
    seconds: float
    host_bytes: int | None
    accelerator_bytes: int | None
    parameters: int | None
    machines: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All that tables and pages show of a comparison.

    Args:
        compare: group or dotted key that tells the methods apart.
        reference: the method that the others are compared with.
        methods: all of them, the reference first.
        metrics: keys of the record, the first is the headline.
        split: of the record's metrics that is compared.
        margin: smallest difference that matters, as a share.
        level: of the intervals.
        cells: in the order of their names.
        results: by cell, method, metric.
        differences: by cell, method, metric; none where no seed is shared.
        overall: by method, metric.
        costs: by cell, method.
        settings: in which compared runs differ beside `compare`.
        missing: what the grid lacks.
        unequal: what was not paired.
        duplicates: what was run twice.
    """

    compare: str
    reference: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    split: str
    margin: float
    level: float
    cells: tuple[Cell, ...]
    results: tuple[Result, ...]
    differences: tuple[Difference, ...]
    overall: tuple[Overall, ...]
    costs: tuple[Cost, ...]
    settings: tuple[Setting, ...]
    missing: tuple[Missing, ...]
    unequal: tuple[UnequalSplits, ...]
    duplicates: tuple[Duplicate, ...]


def compare(
    runs: Runs,
    compare: str = "ablation",
    *,
    reference: str = "baseline",
    metrics: Sequence[str] = ("map_at_r", "recall_at_1"),
    margin: float = 0.005,
    split: str = "unseen",
    cells: Sequence[str] = ("data", "loss"),
    level: float = 0.95,
) -> Comparison:
    """Pair the runs of each method with those of the reference by cell and seed, and say what that shows.

    Args:
        runs: of which the finished ones count.
        compare: group or dotted key that tells the methods apart.
        reference: the method that the others are compared with.
        metrics: keys of the record; the first is the headline.
        margin: smallest difference that matters, as a share (0.005 is half a point); set it beforehand.
        split: of the record's metrics; of a gap, lower is better.
        cells: groups or dotted keys that make a cell, beside the split; `compare` is never one of them.
        level: of the intervals.

    Raises:
        ValueError: there is nothing to compare, or two runs of one cell, method and seed have different
            settings; the message says what there is.
    """
    factors = [key for key in cells if key != compare]
    check_numbers(margin, level)
    check_keys(runs, compare, factors)
    check_methods(runs.finished, compare, reference)
    check_metrics(runs.finished, split, metrics)
    grid = make_grid(runs, compare, reference, factors)
    question = _Question(grid, split, -1.0 if lower_is_better(split) else 1.0, margin, level)
    differences = [
        difference
        for cell in grid.cells
        for method in grid.methods[1:]
        for metric in metrics
        if (difference := question.difference(cell, method, metric)) is not None
    ]
    return Comparison(
        compare=compare,
        reference=reference,
        methods=grid.methods,
        metrics=tuple(metrics),
        split=split,
        margin=margin,
        level=level,
        cells=grid.cells,
        results=tuple(
            result
            for cell in grid.cells
            for method in grid.methods
            for metric in metrics
            if (result := question.result(cell, method, metric)) is not None
        ),
        differences=tuple(differences),
        overall=tuple(question.overall(differences, metrics)),
        costs=tuple(
            _cost(cell, method, [*of_seeds.values()])
            for cell in grid.cells
            for method in grid.methods
            if (of_seeds := grid.runs(cell, method))
        ),
        settings=tuple(_settings(grid)),
        missing=tuple(missing_runs(grid, runs, factors, split, metrics)),
        unequal=tuple(unequal_splits(grid)),
        duplicates=grid.duplicates,
    )


def lower_is_better(split: str) -> bool:
    """Of a generalisation gap."""
    return split.endswith("gap")


@dataclass(frozen=True)
class _Question:
    """What is asked of a grid.

    Args:
        grid: the runs in their places.
        split: of the record's metrics.
        sign: 1 where higher is better, −1 where lower is.
        margin: smallest difference that matters.
        level: of the intervals.
    """

    grid: Grid
    split: str
    sign: float
    margin: float
    level: float

    def result(self, cell: Cell, method: str, metric: str) -> Result | None:
        """One method in one cell; none without a value."""
        runs = self._measured(cell, method, metric)
        points = tuple(Point(run.seed, run.metric(self.split, metric), run.folder) for run in runs)
        if not points:
            return None
        values = [point.value for point in points]
        return Result(
            cell=cell.name,
            method=method,
            metric=metric,
            points=points,
            mean=float(np.mean(values)),
            interval=t_interval(values, self.level),
            gap=_mean([run.metric("gap", metric) for run in runs]),
            untrained=_mean([run.metric("untrained", metric) for run in runs]),
        )

    def difference(self, cell: Cell, method: str, metric: str) -> Difference | None:
        """One method less the reference in one cell; none without a pair."""
        pairs = [
            (theirs, ours)
            for theirs, ours in self.grid.pairs(cell, method)
            if not math.isnan(ours.metric(self.split, metric) - theirs.metric(self.split, metric))
        ]
        if not pairs:
            return None
        values = [
            ours.metric(self.split, metric) - theirs.metric(self.split, metric) for theirs, ours in pairs
        ]
        interval = t_interval(values, self.level)
        of_classes = _class_differences(pairs, metric) if self.split == "unseen" else np.empty(0)
        return Difference(
            cell=cell.name,
            method=method,
            metric=metric,
            seeds=tuple(ours.seed for _, ours in pairs),
            values=tuple(values),
            mean=float(np.mean(values)),
            interval=interval,
            verdict=self._verdict(interval),
            class_mean=_mean(of_classes.tolist()),
            class_interval=t_interval(of_classes, self.level),
            classes=len(of_classes),
        )

    def overall(self, differences: Sequence[Difference], metrics: Sequence[str]) -> Iterator[Overall]:
        """One method less the reference over all cells; none where no cell has a pair."""
        families = {
            (method, metric): found
            for method in self.grid.methods[1:]
            for metric in metrics
            if (found := [one for one in differences if (one.method, one.metric) == (method, metric)])
        }
        tests = [sign_flip_test([one.mean for one in found]) for found in families.values()]
        corrected = holm([test.p_value for test in tests])
        for ((method, metric), found), test, p_holm in zip(families.items(), tests, corrected, strict=True):
            yield self._overall(method, metric, found, test, p_holm)

    def _overall(
        self, method: str, metric: str, found: Sequence[Difference], test: SignFlip, p_holm: float
    ) -> Overall:
        means = [one.mean for one in found]
        interval = t_interval(means, self.level)
        said = self._verdict(interval)
        # An interval trusts that cells are spread normally, the test does not: a difference must pass both.
        is_sure = said is Verdict.EQUIVALENT or p_holm <= 1 - self.level
        return Overall(
            method=method,
            metric=metric,
            cells=len(means),
            mean=float(np.mean(means)),
            interquartile_mean=interquartile_mean(means),
            interval=interval,
            improved=float(np.mean([self.sign * mean > TINY for mean in means])),
            probability=float(np.mean([self._probability(one) for one in found])),
            p_value=test.p_value,
            p_holm=p_holm,
            smallest_p=test.smallest_p,
            is_exact=test.is_exact,
            verdict=said if is_sure else Verdict.CANNOT_TELL,
        )

    def _probability(self, difference: Difference) -> float:
        cell = next(cell for cell in self.grid.cells if cell.name == difference.cell)
        ours, theirs = (
            [
                self.sign * run.metric(self.split, difference.metric)
                for run in self._measured(cell, method, difference.metric)
            ]
            for method in (difference.method, self.grid.methods[0])
        )
        return probability_of_improvement(ours, theirs)

    def _measured(self, cell: Cell, method: str, metric: str) -> list[Run]:
        runs = self.grid.runs(cell, method).values()
        return [run for run in runs if not math.isnan(run.metric(self.split, metric))]

    def _verdict(self, interval: Interval | None) -> Verdict:
        if interval is None or self.sign > 0:
            return verdict(interval, self.margin)
        return verdict(Interval(-interval.high, -interval.low), self.margin)


def _class_differences(pairs: Sequence[tuple[Run, Run]], metric: str) -> np.ndarray:
    """`(classes,)` difference of each class that both have, mean over seeds."""
    of_seeds = []
    for theirs, ours in pairs:
        before, after = (run.record.per_class.get(metric, {}) for run in (theirs, ours))
        of_seeds.append({name: value - before[name] for name, value in after.items() if name in before})
    names = [name for name in of_seeds[0] if all(name in of_seed for of_seed in of_seeds)]
    means = np.array([[of_seed[name] for name in names] for of_seed in of_seeds]).mean(axis=0)
    return means[~np.isnan(means)]


def _cost(cell: Cell, method: str, runs: Sequence[Run]) -> Cost:
    records = [run.record for run in runs]
    speeds = [record.images_per_second for record in records if math.isfinite(record.images_per_second)]
    all_seconds = [
        record.seconds.get("train_total", record.seconds.get("train", math.nan)) for record in records
    ]
    seconds = [one for one in all_seconds if math.isfinite(one)]
    return Cost(
        cell=cell.name,
        method=method,
        images_per_second=statistics.median(speeds) if speeds else math.nan,
        seconds=statistics.median(seconds) if seconds else math.nan,
        host_bytes=_most([record.peak_memory.host_bytes for record in records]),
        accelerator_bytes=_most([record.peak_memory.accelerator_bytes for record in records]),
        parameters=_most([record.parameters for record in records]),
        machines=tuple(sorted({_machine(run) for run in runs})),
    )


def _machine(run: Run) -> str:
    environment = run.record.environment
    return " + ".join(environment.accelerators) or f"{environment.processor}, {environment.cores} cores"


def _settings(grid: Grid) -> Iterator[Setting]:
    for method in grid.methods[1:]:
        pairs = [pair for cell in grid.cells for pair in grid.pairs(cell, method)]
        yield from setting_differences(method, pairs, compare=grid.compare)
    for method in grid.methods:
        seeds = [[*grid.runs(cell, method).values()] for cell in grid.cells]
        pairs = [(first, other) for first, *others in filter(None, seeds) for other in others]
        yield from setting_differences(method, pairs, compare=grid.compare, is_within=True)


def _mean(values: Sequence[float]) -> float:
    """Of the values that are numbers; NaN without one."""
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
