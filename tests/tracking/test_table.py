"""Tables as they stand in a terminal."""

import math

import pytest
from rich.console import Console

from unseen.tracking.table import metric_title, results_table


def shown(table, width=140):
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def line_with(text, start):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("recall_at_1", "Recall@1"),
        ("precision_at_10", "Precision@10"),
        ("map_at_r", "MAP@R"),
        ("knn_accuracy_3", "3-NN accuracy"),
        ("something_new", "something new"),
    ],
)
def test_metric_titles(name, title):
    assert metric_title(name) == title


def test_one_run_shows_every_metric_of_every_split_in_percent():
    text = shown(
        results_table(
            {
                "gap": {"recall_at_1": 0.125, "map_at_r": -0.04},
                "seen": {"recall_at_1": 0.75, "map_at_r": math.nan},
                "unseen": {"recall_at_1": 0.6234, "map_at_r": 0.21, "nmi": 0.5},
            },
            title="glyphs",
        )
    )
    assert "glyphs" in text
    assert line_with(text, "%") == ["%", "classes", "held", "out", "unseen"]
    assert line_with(text, "Recall@1") == ["Recall@1", "62.3", "75.0", "+12.5"]
    assert line_with(text, "MAP@R") == ["MAP@R", "21.0", "–", "-4.0"]
    assert line_with(text, "NMI") == ["NMI", "50.0", "–", "–"]


ALL_SPLITS = ("unseen", "untrained", "validation", "seen", "unseen_matched", "gap", "untrained_gap")


@pytest.mark.parametrize("left_out", ["none", "validation"])
def test_all_columns_fit_a_terminal_of_80_characters(left_out):
    splits = [split for split in ALL_SPLITS if split != left_out]
    values = {"recall_at_1": 0.9999, "knn_accuracy_3": 0.125}
    text = shown(
        results_table(
            dict.fromkeys(splits, values),
            spread={"gap": dict.fromkeys(values, 0.021)},
            intervals={"unseen": dict.fromkeys(values, (0.6, 0.642))},
        ),
        width=80,
    )
    assert "…" not in text
    plain = ["12.5"] * (len(splits) - 3)
    wanted = ["3-NN", "accuracy", "12.5", "±2.1", *plain, "+12.5", "±2.1", "+12.5"]
    assert line_with(text, "3-NN") == wanted
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_margins_stand_beside_the_unseen_metrics_and_the_gap_and_are_explained():
    metrics = {"unseen": {"recall_at_1": 0.633, "nmi": 0.5}, "gap": {"recall_at_1": 0.1, "nmi": 0.2}}
    text = shown(
        results_table(
            metrics,
            spread={"gap": {"recall_at_1": 0.025, "nmi": math.nan}, "seen": {"recall_at_1": 0.5}},
            intervals={"unseen": {"recall_at_1": (0.61, 0.656)}},
        )
    )
    assert line_with(text, "Recall@1") == ["Recall@1", "63.3", "±2.3", "+10.0", "±2.5"]
    assert line_with(text, "NMI") == ["NMI", "50.0", "+20.0"]
    legend = " ".join(text.split())
    assert "95 % interval over test classes" in legend
    assert "standard deviation" in legend
    assert "±" not in shown(results_table(metrics))


def test_the_probe_has_a_row_only_where_there_was_one():
    metrics = {"unseen": {"recall_at_1": 0.5}, "gap": {"recall_at_1": 0.1}}
    assert "probe" not in shown(results_table(metrics))
    metrics["unseen"]["probe_accuracy"] = math.nan
    assert line_with(shown(results_table(metrics)), "linear") == ["linear", "probe", "–", "–"]
