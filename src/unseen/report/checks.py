"""What a comparison refuses, in words, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from unseen.report.runs import Run, Runs, differing_keys


def check_numbers(margin: float, level: float) -> None:
    """Refuse a margin or a level that is no such share.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= margin < 0.5:
        raise ValueError(
            f"margin={margin}: wanted a share from 0 to below 0.5, as metrics are; 0.005 is half a point."
        )
    if not 0.5 <= level < 1:
        raise ValueError(f"level={level}: wanted a share from 0.5 to below 1; 0.95 is usual.")


def check_keys(runs: Runs, compare: str, factors: Sequence[str]) -> None:
    """Refuse when nothing is finished, and keys that no run has.

    Args:
        runs: all that was found.
        compare: key that tells the methods apart.
        factors: keys that make cells.

    Raises:
        ValueError: naming the keys in which runs differ.
    """
    if not runs.finished:
        raise ValueError(_nothing_finished(runs))
    if compare == "seed":
        raise ValueError(
            "compare=seed: seeds are what is averaged over. Compare a group or a key of the config."
        )
    for name, key in [("compare", compare), *(("cells", factor) for factor in factors)]:
        if not any(run.has(key) for run in runs.finished):
            raise ValueError(
                f"{name}={key}: no run has such a group or key. {_differences_in_words(runs.finished)}"
            )


def _nothing_finished(runs: Runs) -> str:
    reasons = [f"'{run.folder}' {run.record.status}: {run.record.error}" for run in runs.unfinished]
    reasons += [unreadable.reason for unreadable in runs.unreadable]
    if not reasons:
        return "There is no record of a run (record.json) in these folders; `unseen train` leaves one."
    return f"No run is finished; {len(reasons)} left no result. The first: {reasons[0]}"


def check_methods(runs: Sequence[Run], compare: str, reference: str) -> None:
    """Refuse one method alone, and a reference that is no method.

    Raises:
        ValueError: naming the methods, or the keys in which runs differ.
    """
    methods = sorted({run.value(compare) for run in runs})
    if len(methods) < 2:
        raise ValueError(
            f"compare={compare}: every finished run has '{methods[0]}', which leaves nothing to compare. "
            f"{_differences_in_words(runs)}"
        )
    if reference not in methods:
        raise ValueError(
            f"reference={reference}: no finished run has it as its '{compare}'. "
            f"There are: {', '.join(methods)}."
        )


def check_metrics(runs: Sequence[Run], split: str, metrics: Sequence[str]) -> None:
    """Refuse a split or a metric that no run has.

    Raises:
        ValueError: naming those that there are.
    """
    splits = sorted({name for run in runs for name in run.record.metrics})
    if split not in splits:
        raise ValueError(f"split={split}: no run was measured on it. There are: {', '.join(splits)}.")
    if not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"Metrics to compare by: wanted one or more, each once, got {list(metrics)}.")
    known = sorted({name for run in runs for name in run.record.metrics.get(split, {})})
    for metric in metrics:
        if metric not in known:
            raise ValueError(
                f"No finished run has the metric '{metric}' on '{split}'. There are: {', '.join(known)}."
            )


def _differences_in_words(runs: Sequence[Run]) -> str:
    differing = differing_keys(runs)
    if not differing:
        return "The runs differ in no group and no key."
    words = [
        f"{key} ({', '.join(values[:4])}{' …' if len(values) > 4 else ''})"
        for key, values in differing.items()
    ]
    return f"The runs differ in: {'; '.join(words[:12])}{' …' if len(words) > 12 else '.'}"
