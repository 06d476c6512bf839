"""One comparison of methods: paired differences, what they allow to say, what is missing, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unseen.report.runs import Runs
from unseen.report.statistics import Interval, Verdict


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
class Setting:
    """A key of the config in which runs that are compared with each other differ.

    Args:
        method: whose runs differ from the reference's; equal to the reference where its own seeds differ.
        key: dotted, or a group whose choice differs.
        reference: values of the other side, as text: the reference's, or those of the method's first seed.
        value: values of the method's.
        pairs: number of pairs that differ in it.
        of: number of pairs.
        is_part: a part that another choice replaced (`fusion`, `adversary`), in every pair: it is the method.
            Anything else is in the difference beside it.
    """

    method: str
    key: str
    reference: str
    value: str
    pairs: int
    of: int
    is_part: bool


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
    """Runs that were not paired, because they were not tested on the same classes.

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
        split: of the record's metrics.
        cells: groups or dotted keys that make a cell, beside the split; `compare` is never one of them.
        level: of the intervals.

    Raises:
        ValueError: there is nothing to compare; the message says what there is.
    """
    raise NotImplementedError
