"""A comparison in Weights & Biases: a workspace of grouped panels, and a report with the comparison's tables.

Averages in the panels are W&B's own, of the runs that were logged there; the tables are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unseen.report.comparison import Comparison, lower_is_better
from unseen.report.runs import Run, Runs, command
from unseen.report.tables import markdown
from unseen.tracking.dashboards.card import IDENTITY_FILE
from unseen.tracking.table import metric_title

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

MOST_COMMANDS = 40
"""How to reproduce: so many commands are shown."""


class Published(NamedTuple):
    """Where to look.

    Args:
        workspace: address of the saved view.
        report: address of the report.
        logged: runs of the comparison that were logged to a dashboard, and so are in the panels.
    """

    workspace: str
    report: str
    logged: int

    def __str__(self) -> str:
        return f"Workspace: {self.workspace}\nReport: {self.report}\nRuns in its panels: {self.logged}"


def publish(comparison: Comparison, runs: Runs, project: str, entity: str | None = None) -> Published:
    """Save both, as new ones.

    Args:
        comparison: whose tables are shown.
        runs: from which it was made; those logged to W&B fill the panels.
        project: W&B project that the runs were logged to.
        entity: user or team; none for the default of the account.

    Raises:
        ValueError: none of the runs was logged, there is no key, W&B refuses it, or wandb-workspaces is not
            installed.
    """
    from unseen.tracking.dashboards.wandb import has_key

    identities = logged(_counted(comparison, runs))
    if not identities:
        raise ValueError(
            "to=wandb: none of the runs was logged to a dashboard. Train with logger=wandb "
            "(offline runs: `wandb sync RUN/wandb/offline-run-*` first)."
        )
    if not has_key():
        raise ValueError("to=wandb: no W&B API key. Run `wandb login`, or set WANDB_API_KEY.")
    import wandb

    try:
        owner = entity or str(wandb.Api().default_entity)
        view = workspace(comparison, runs, project, owner).save()
        text = report(comparison, runs, project, owner).save()
    except wandb.Error as error:
        raise ValueError(f"to=wandb: W&B refuses '{entity or ''}/{project}': {error}") from error
    return Published(view.url, text.url, len(identities))


def workspace(comparison: Comparison, runs: Runs, project: str, entity: str) -> Workspace:
    """The view of a project: its runs, seeds averaged, in sections of panels. Nothing is sent."""
    panels, views = _modules()
    from wandb_workspaces import expr

    sections = [
        views.Section(name=name, panels=of_section, is_open=place < 3)
        for place, (name, of_section) in enumerate(_sections(comparison, panels))
    ]
    headline = f"{comparison.split}/{comparison.metrics[0]}"
    return views.Workspace(
        entity=entity,
        project=project,
        name=_title(comparison),
        sections=sections,
        settings=views.WorkspaceSettings(max_runs=100),
        runset_settings=views.RunsetSettings(
            filters=_only(logged(_counted(comparison, runs))),
            groupby=[expr.Config(key) for key in _groups(comparison, runs.finished)],
            order=[expr.Ordering(expr.Summary(headline), ascending=lower_is_better(comparison.split))],
            pinned_columns=[f"summary:{comparison.split}/{metric}" for metric in comparison.metrics],
        ),
    )


def report(comparison: Comparison, runs: Runs, project: str, entity: str) -> Report:
    """A page of text, tables and panels. Nothing is sent."""
    panels, _ = _modules()
    runs_shown = panels.Runset(
        # Without entity and project it is of the report's own, and need not look them up.
        name=comparison.compare,
        filters=_only(logged(_counted(comparison, runs))),
        groupby=[f"config.{_backend(key)}" for key in _groups(comparison, runs.finished)],
    )
    grid = panels.PanelGrid(
        runsets=[runs_shown], panels=[panel for _, found in _sections(comparison, panels) for panel in found]
    )
    commands = [typed for run in runs.finished if (typed := command(run)) is not None]
    if len(commands) > MOST_COMMANDS:
        left_out = len(commands) - MOST_COMMANDS
        commands[MOST_COMMANDS:] = [f"# and {left_out} more: each record.json has its overrides"]
    return panels.Report(
        entity=entity,
        project=project,
        title=_title(comparison),
        description=f"{len(runs.finished)} finished runs, {len(logged(runs.finished))} of them logged here.",
        width="fluid",
        blocks=[
            panels.TableOfContents(),
            panels.H2("Comparison"),
            panels.MarkdownBlock(markdown(comparison)),
            panels.H2("Runs"),
            panels.P("Bars and curves are means over seeds; bands reach from the lowest to the highest."),
            grid,
            panels.H2("How to reproduce"),
            panels.CodeBlock("\n".join(commands)),
        ],
    )


def logged(runs: Iterable[Run]) -> list[str]:
    """The ids under which dashboards know the runs; a run that was not logged has none."""
    found = []
    for run in runs:
        try:
            found.append(str(json.loads((run.folder / IDENTITY_FILE).read_text(encoding="utf-8"))["id"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return list(dict.fromkeys(found))


def _counted(comparison: Comparison, runs: Runs) -> list[Run]:
    """Without those that a newer one of the same settings and seed replaces: W&B's means would count both."""
    dropped = {folder for one in comparison.duplicates for folder in one.dropped}
    return [run for run in runs.finished if run.folder not in dropped]


def _modules() -> tuple[Any, Any]:
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise ValueError(
            "to=wandb: wandb-workspaces is not installed. Run `pip install 'unseen-dml[workspaces]'`."
        ) from error
    return v2, workspaces


def _sections(comparison: Comparison, panels: Any) -> list[tuple[str, list[Any]]]:
    """Name → panels, what matters most first."""
    seeds = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    titles = {metric: metric_title(metric) for metric in comparison.metrics}

    def bar(metric: str, title: str) -> Any:
        return panels.BarPlot(title=title, metrics=[metric], **seeds)

    def curve(metrics: Sequence[str], title: str) -> Any:
        return panels.LinePlot(title=title, x="epoch", y=list(metrics), title_x="epoch", **seeds)

    validated = [curve([f"validation/{metric}"], f"{title}, validation") for metric, title in titles.items()]
    norms = [f"train/gradient_norm_{name}" for name in ("metric", "adversary")]
    return [
        ("Unseen classes", [bar(f"unseen/{metric}", f"{title}, unseen") for metric, title in titles.items()]),
        (
            "Generalisation gap",
            [
                bar(f"{split}/{metric}", f"{title}, {name}")
                for metric, title in titles.items()
                for split, name in (("gap", "gap (seen − unseen)"), ("untrained", "before training"))
            ],
        ),
        ("Validation classes", validated),
        (
            "Training",
            [
                curve(["train/loss"], "loss"),
                curve(["train/metric_loss"], "metric loss"),
                curve(["probe/seen"], "linear probe, seen classes"),
            ],
        ),
        (
            "Adversary",
            [
                curve(["train/adversary_accuracy"], "accuracy of its head"),
                curve(["train/adversary_strength"], "strength λ"),
                curve(norms, "gradients at the feature maps"),
            ],
        ),
        (
            "Cost",
            [
                bar("cost/images_per_second", "images/s in training"),
                bar("cost/train_seconds", "seconds of training"),
                bar("cost/parameters", "parameters"),
            ],
        ),
        (
            "Queries",
            [
                panels.WeavePanelSummaryTable(table_name="worst_queries"),
                panels.MediaBrowser(media_keys=["pictures/neighbours"]),
                panels.MediaBrowser(media_keys=["pictures/embedding_map"]),
            ],
        ),
    ]


def _title(comparison: Comparison) -> str:
    return f"unseen: {comparison.compare} against {comparison.reference}"


def _only(identities: Sequence[str]) -> str:
    names = ", ".join(f"'{identity}'" for identity in identities)
    return f"Metric('ID') in [{names}]"


def _groups(comparison: Comparison, runs: Sequence[Run]) -> list[str]:
    """Keys of W&B's config that runs which differ in the seed alone have in common: cell, then method."""
    factors = dict.fromkeys(key for cell in comparison.cells for key in cell.factors)
    return [_config_key(key, runs) for key in (*factors, comparison.compare)]


def _config_key(key: str, runs: Sequence[Run]) -> str:
    """Groups lie below `choices`; dotted keys are the config's own."""
    return f"choices.{key}" if any(key in run.record.choices for run in runs) else key


def _backend(key: str) -> str:
    """A nested key as W&B stores it: `choices.loss` → `choices.value.loss`."""
    first, *rest = key.split(".")
    return ".".join([first, "value", *rest])
