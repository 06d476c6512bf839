"""Tables as they stand in a terminal."""

import math

import pytest
from rich.console import Console

from unseen.tracking.record import RunRecord
from unseen.tracking.table import metric_title, results_table, runs_table


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
    assert line_with(text, "%") == ["%", "classes", "held", "out", "gap"]
    assert line_with(text, "Recall@1") == ["Recall@1", "62.3", "75.0", "+12.5"]
    assert line_with(text, "MAP@R") == ["MAP@R", "21.0", "–", "-4.0"]
    assert line_with(text, "NMI") == ["NMI", "50.0", "–", "–"]


def test_all_columns_fit_a_terminal_of_80_characters():
    values = {"recall_at_1": 1.0, "knn_accuracy_3": 1.0}
    splits = ("unseen", "seen", "unseen_matched", "gap", "validation")
    text = shown(results_table(dict.fromkeys(splits, values)), width=80)
    assert "…" not in text
    assert line_with(text, "3-NN")[:2] == ["3-NN", "accuracy"]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def run_of(loss, seed, recall, gap=None):
    metrics = {"unseen": {"recall_at_1": recall, "map_at_r": recall / 2}}
    if gap is not None:
        metrics["gap"] = {"recall_at_1": gap, "map_at_r": gap / 2}
    return RunRecord(
        choices={"loss": loss, "data": "glyphs"},
        seed=seed,
        config={},
        split="",
        manifest="",
        metrics=metrics,
        seconds={},
        images_per_second=1.0,
    )


def test_several_runs_show_the_choices_that_differ():
    text = shown(runs_table({"first": run_of("triplet", 0, 0.5, 0.1), "second": run_of("arcface", 7, 0.25)}))
    assert "loss" in text
    assert "data" not in text
    assert line_with(text, "first") == ["first", "triplet", "0", "50.0", "+10.0", "25.0", "+5.0"]
    assert line_with(text, "second") == ["second", "arcface", "7", "25.0", "–", "12.5", "–"]
