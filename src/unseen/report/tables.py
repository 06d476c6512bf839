"""A comparison as tables: for a terminal, Markdown and LaTeX from the same sheets; CSV with every digit."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unseen.report.comparison import Comparison, Cost, Difference, Result
from unseen.report.notes import notes
from unseen.report.runs import Run, Runs
from unseen.report.statistics import Interval, Verdict
from unseen.tracking.table import SPLITS, metric_title

NOTHING = "–"
STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.EQUIVALENT: "cyan"}


class Row(NamedTuple):
    """Of a sheet.

    Args:
        texts: of its columns.
        verdict: that the row tells; none where it tells none.
        starts: whether it starts a group of rows.
    """

    texts: tuple[str, ...]
    verdict: Verdict | None = None
    starts: bool = False


class Sheet(NamedTuple):
    """A table in words.

    Args:
        title: above it.
        columns: their headings.
        rows: of texts.
        names: number of leading columns that are names: they are left-aligned and may be wrapped.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    names: int


def sheets(comparison: Comparison) -> list[Sheet]:
    """What there is to show: each metric by cell, all over cells where there are several, then costs."""
    found = [_by_cell(comparison, metric) for metric in comparison.metrics]
    found += [
        _over_cells(comparison, metric)
        for metric in comparison.metrics
        if any(one.cells > 1 and one.metric == metric for one in comparison.overall)
    ]
    if any(one.class_interval is not None for one in comparison.differences):
        found.append(_over_classes(comparison))
    return [*found, _costs(comparison)]


def terminal(comparison: Comparison) -> RenderableType:
    """For rich, at 80 columns or more."""
    parts: list[RenderableType] = []
    for sheet in sheets(comparison):
        parts += [Text(sheet.title, style="bold"), _rich(sheet), ""]
    return Group(*parts, *(Text(note, style="dim") for note in notes(comparison)))


def markdown(comparison: Comparison) -> str:
    """Tables and notes, for a page or an issue."""
    lines: list[str] = []
    for sheet in sheets(comparison):
        rules = ["---"] * sheet.names + ["---:"] * (len(sheet.columns) - sheet.names)
        lines += [f"**{_marked(sheet.title)}**", "", _line(map(_marked, sheet.columns)), _line(rules)]
        for row in sheet.rows:
            texts = [_marked(text) for text in row.texts]
            if row.verdict in STYLES:
                texts[-1] = f"**{texts[-1]}**"
            lines.append(_line(texts))
        lines.append("")
    return "\n".join([*lines, *(f"- {_marked(note)}" for note in notes(comparison))]) + "\n"


def latex(comparison: Comparison) -> str:
    r"""Tables for `\input`, in the form of booktabs; the notes are comments above them."""
    lines = [r"% Needs \usepackage{booktabs}.", *(f"% {note}" for note in notes(comparison))]
    for sheet in sheets(comparison):
        columns = "l" * sheet.names + "r" * (len(sheet.columns) - sheet.names)
        lines += [
            "",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(sheet.title)}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {_tex_line(sheet.columns)}",
            r"    \midrule",
        ]
        for place, row in enumerate(sheet.rows):
            if row.starts and place:
                lines.append(r"    \addlinespace")
            lines.append(f"    {_tex_line(row.texts, is_bold=row.verdict in STYLES)}")
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """A line for each method, cell and metric: shares with all their digits, empty where there is none."""
    differences = {(one.cell, one.method, one.metric): one for one in comparison.differences}
    costs = {(one.cell, one.method): one for one in comparison.costs}
    cells = {cell.name: cell for cell in comparison.cells}
    lines = []
    for result in comparison.results:
        cell = cells[result.cell]
        difference = differences.get((result.cell, result.method, result.metric))
        lines.append(
            {
                "cell": cell.name,
                **cell.factors,
                "split": cell.split,
                comparison.compare: result.method,
                "reference": comparison.reference,
                "of": comparison.split,
                "metric": result.metric,
                **_result_columns(result),
                **_difference_columns(difference),
                **_cost_columns(costs[result.cell, result.method]),
            }
        )
    return _csv(lines)


def overall_csv(comparison: Comparison) -> str:
    """A line for each method and metric over all cells."""
    lines = []
    for one in comparison.overall:
        columns = {**vars(one), **_ends("", one.interval)}
        del columns["interval"]
        lines.append({"reference": comparison.reference, "margin": comparison.margin, **columns})
    return _csv(lines)


def runs_csv(runs: Runs, compare: str) -> str:
    """A line for each run, unfinished ones too, with every metric of its record."""
    return _csv([_run_columns(run, compare) for run in (*runs.finished, *runs.unfinished)])


def _by_cell(comparison: Comparison, metric: str) -> Sheet:
    differences = {(one.cell, one.method): one for one in comparison.differences if one.metric == metric}
    rows = []
    before = None
    for result in (one for one in comparison.results if one.metric == metric):
        difference = differences.get((result.cell, result.method))
        rows.append(
            Row(
                (
                    result.cell if result.cell != before else "",
                    result.method,
                    str(len(result.points)),
                    _value(result.mean, result.interval),
                    *_difference_texts(difference),
                ),
                None if difference is None else difference.verdict,
                result.cell != before,
            )
        )
        before = result.cell
    return _one_cell_is_title(
        Sheet(
            f"{metric_title(metric)}, {' '.join(SPLITS.get(comparison.split, comparison.split).split())}, %",
            ("cell", comparison.compare, "n", "mean", f"− {comparison.reference}", "verdict"),
            tuple(rows),
            2,
        ),
        comparison,
    )


def _over_cells(comparison: Comparison, metric: str) -> Sheet:
    rows = [
        Row(
            (
                one.method,
                _signed(one.mean, one.interval),
                _change(one.interquartile_mean),
                f"{round(one.improved * one.cells)}/{one.cells}",
                f"{one.probability:.2f}",
                _p(one.p_value),
                _p(one.p_holm),
                str(one.verdict),
            ),
            one.verdict,
        )
        for one in comparison.overall
        if one.metric == metric
    ]
    columns = (comparison.compare, "mean", "IQM", "up", "P", "p", "Holm", "verdict")
    title = f"{metric_title(metric)} over cells: difference from {comparison.reference}, points"
    return Sheet(title, columns, tuple(rows), 1)


def _over_classes(comparison: Comparison) -> Sheet:
    rows = []
    before = None
    for one in comparison.differences:
        if one.class_interval is None:
            continue
        rows.append(
            Row(
                (
                    one.cell if one.cell != before else "",
                    one.method,
                    metric_title(one.metric),
                    str(one.classes),
                    _signed(one.class_mean, one.class_interval),
                ),
                None,
                one.cell != before,
            )
        )
        before = one.cell
    columns = ("cell", comparison.compare, "metric", "classes", f"− {comparison.reference}")
    title = "Over test classes: mean difference of a class, points"
    return _one_cell_is_title(Sheet(title, columns, tuple(rows), 3), comparison)


def _costs(comparison: Comparison) -> Sheet:
    metric = comparison.metrics[0]
    results = {(one.cell, one.method): one for one in comparison.results if one.metric == metric}
    rows = []
    before = None
    for one in comparison.costs:
        result = results.get((one.cell, one.method))
        memory = one.accelerator_bytes or one.host_bytes
        rows.append(
            Row(
                (
                    one.cell if one.cell != before else "",
                    one.method,
                    NOTHING if result is None else _percent(result.gap),
                    NOTHING if result is None else _percent(result.untrained),
                    _number(one.images_per_second, "{:.0f}"),
                    _number(one.seconds, "{:.0f}"),
                    NOTHING if memory is None else f"{memory / 2**30:.1f}",
                    NOTHING if one.parameters is None else f"{one.parameters / 1e6:.2f}",
                ),
                None,
                one.cell != before,
            )
        )
        before = one.cell
    columns = ("cell", comparison.compare, "gap", "untrained", "images/s", "s", "GiB", "M par.")
    title = f"Gap and untrained {metric_title(metric)} (%), and what training took"
    return _one_cell_is_title(Sheet(title, columns, tuple(rows), 2), comparison)


def _one_cell_is_title(sheet: Sheet, comparison: Comparison) -> Sheet:
    """With a single cell its name moves from the first column into the title."""
    if len(comparison.cells) > 1:
        return sheet
    return Sheet(
        f"{sheet.title}: {comparison.cells[0].name}",
        sheet.columns[1:],
        tuple(Row(row.texts[1:], row.verdict, False) for row in sheet.rows),
        sheet.names - 1,
    )


def _difference_texts(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    return _signed(difference.mean, difference.interval), str(difference.verdict)


def _rich(sheet: Sheet) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, column in enumerate(sheet.columns):
        is_name = place < sheet.names
        table.add_column(
            escape(column), justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold"
        )
    for row in _stacked(sheet.rows):
        *texts, last = (Text(text) for text in row.texts)
        if row.verdict is not None:
            last.stylize(STYLES.get(row.verdict, "dim"))
        table.add_row(*texts, last)
    return table


def _stacked(rows: Sequence[Row]) -> list[Row]:
    """The name of a group of rows, `cub · triplet`, a part in each of its rows: a terminal is narrow."""
    stacked: list[Row] = []
    parts: list[str] = []
    for place, row in enumerate(rows):
        if row.starts:
            parts = row.texts[0].split(" · ")
        is_last = place + 1 == len(rows) or rows[place + 1].starts
        if row.starts or not row.texts[0]:
            shown = " · ".join(parts) if is_last else "".join(parts[:1])
            parts = parts[1:]
            row = row._replace(texts=(shown, *row.texts[1:]))
        stacked.append(row)
    return stacked


def _value(mean: float, interval: Interval | None) -> str:
    half = "" if interval is None else f" ±{50 * (interval.high - interval.low):.1f}"
    return f"{100 * mean:.1f}{half}"


def _signed(mean: float, interval: Interval | None) -> str:
    ends = "" if interval is None else f" [{_change(interval.low)}, {_change(interval.high)}]"
    return f"{_change(mean)}{ends}"


def _change(share: float) -> str:
    """A difference in points."""
    return NOTHING if math.isnan(share) else f"{100 * share:+.2f}"


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.1f}"


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else NOTHING


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<.001"


def _marked(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$", "→": r"$\to$", "≤": r"$\leq$", "–": "--", "…": r"\ldots{}",
    "\n": " ",
}  # fmt: skip
"""Character → what LaTeX takes for it."""


def _tex(text: str) -> str:
    # A leading bracket after `\\` would be taken for its argument; a hyphen before a digit is a minus.
    escaped = "".join(TEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])([+-])(?=\d)", r"$\1$", escaped)


def _tex_line(texts: Sequence[str], *, is_bold: bool = False) -> str:
    *others, last = (f"{{{text}}}" if text.startswith("[") else text for text in map(_tex, texts))
    return " & ".join([*others, rf"\textbf{{{last}}}" if is_bold else last]) + r" \\"


def _result_columns(result: Result) -> dict[str, Any]:
    return {
        "runs": len(result.points),
        "mean": result.mean,
        **_ends("mean_", result.interval),
        "gap": result.gap,
        "untrained": result.untrained,
    }


def _difference_columns(difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {}
    return {
        "pairs": len(difference.seeds),
        "seeds": " ".join(map(str, difference.seeds)),
        "difference": difference.mean,
        **_ends("", difference.interval),
        "verdict": str(difference.verdict),
        "classes": difference.classes,
        "class_difference": difference.class_mean,
        **_ends("class_", difference.class_interval),
    }


def _cost_columns(cost: Cost) -> dict[str, Any]:
    return {
        "images_per_second": cost.images_per_second,
        "seconds": cost.seconds,
        "host_bytes": cost.host_bytes,
        "accelerator_bytes": cost.accelerator_bytes,
        "parameters": cost.parameters,
        "machines": "; ".join(cost.machines),
    }


def _run_columns(run: Run, compare: str) -> dict[str, Any]:
    record = run.record
    return {
        "folder": str(run.folder),
        "status": record.status,
        "error": record.error,
        **{key: run.value(key) for key in dict.fromkeys(["data", "loss", "ablation", compare])},
        "seed": run.seed,
        "split": run.split,
        "job_key": record.job_key,
        "chosen_epoch": record.chosen_epoch,
        "images_per_second": record.images_per_second,
        "seconds": record.seconds.get("train_total", record.seconds.get("train")),
        "host_bytes": record.peak_memory.host_bytes,
        "accelerator_bytes": record.peak_memory.accelerator_bytes,
        "parameters": record.parameters,
        "finished": record.finished,
        "overrides": " ".join(record.overrides),
        **{
            f"{split}/{metric}": value
            for split, values in record.metrics.items()
            for metric, value in values.items()
        },
    }


def _ends(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{prefix}low": low, f"{prefix}high": high}


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    """All columns that any line has, in the order in which they come first."""
    columns = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: None if value != value else value for name, value in line.items()})
    return text.getvalue()
