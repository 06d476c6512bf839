"""The same numbers on a terminal, in Markdown, LaTeX and CSV; nothing in a name breaks any of them."""

import csv
import dataclasses
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from rich.console import Console

from unseen.report.comparison import compare
from unseen.report.notes import notes
from unseen.report.runs import Runs
from unseen.report.tables import comparison_csv, latex, markdown, overall_csv, runs_csv, terminal

NASTY = r"a_b&c%d$e#f{g}~h^i\j|k[l]<m>*n`o"


@pytest.fixture
def runs(record, runs_of):
    """Two data sets, two losses, three methods (one with a nasty name), three seeds, one run missing."""
    generator = np.random.default_rng(0)
    records = []
    for data in ("cub", "plantvillage"):
        for loss in ("multi_similarity", "triplet"):
            for number, method in enumerate(("baseline", "full", NASTY)):
                for seed in range(3):
                    value = 0.3 + 0.02 * number + float(generator.normal(0, 0.002))
                    classes = {f"class {name}": value + float(generator.normal(0, 0.1)) for name in range(30)}
                    records.append(
                        record(method, seed, value, data=data, loss=loss, per_class={"map_at_r": classes})
                    )
    records[4] = dataclasses.replace(records[4], status="failed", error="RuntimeError: out of\nmemory 5 %")
    return runs_of(*records)


@pytest.fixture
def comparison(runs):
    return compare(runs, margin=0.01)


def printed(comparison, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal(comparison))
    return console.file.getvalue()


def shown(one):
    low, high = one.interval
    return f"{100 * one.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def test_a_terminal_of_80_columns_shows_every_number_whole(comparison):
    lines = printed(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for difference in comparison.differences:
        assert f"{shown(difference)}" in text
    for overall in comparison.overall:
        assert shown(overall) in text
        assert f"{overall.p_holm:.3f}" in text
    assert "MAP@R, unseen classes, %" in text
    [full] = [line for line in lines if "MAP@R over cells" in line]
    assert "difference from baseline" in full
    assert "…" not in text


def test_a_cell_s_name_stands_once(runs):
    two = Runs(tuple(run for run in runs.finished if run.value("ablation") != NASTY))
    lines = printed(compare(two)).splitlines()
    start = lines.index(next(line for line in lines if line.startswith("cell")))
    assert [line.split()[0] for line in lines[start + 2 : start + 4]] == ["cub", "multi_similarity"]


def test_a_single_cell_is_in_the_title(record, runs_of):
    comparison = compare(
        runs_of(*(record(method, seed) for method in ("baseline", "full") for seed in (0, 1)))
    )
    text = printed(comparison)
    assert "MAP@R, unseen classes, %: cub · triplet" in text
    assert "over cells" not in text
    assert "One cell: it says nothing about other data sets or losses." in text


def cells_of(line, separator):
    return re.split(rf"(?<!\\){re.escape(separator)}", line)


def test_markdown_keeps_its_columns(comparison):
    text = markdown(comparison)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == len(comparison.metrics) * 2 + 2
    for head, rule, *rows in tables:
        assert re.fullmatch(r"\|( ---:? \|)+", rule)
        assert {len(cells_of(row, "|")) for row in rows} == {len(cells_of(head, "|"))}
    for difference in comparison.differences:
        assert shown(difference).replace("[", r"\[").replace("]", r"\]") in text
    assert "**better**" in text
    assert r"a\_b&c%d$e#f{g}\~h^i\\j\|k\[l\]\<m\>\*n\`o" in text


def test_latex_keeps_its_columns_and_escapes_everything(comparison):
    text = latex(comparison)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert text.startswith("% Needs \\usepackage{booktabs}.")
    assert not set(body) & set("±−·→≤–…")
    assert body.count(r"\begin{table}") == body.count(r"\end{table}") == len(comparison.metrics) * 2 + 2
    plain = re.sub(r"\\[\\{}&%$#_]", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert "%" not in plain
    assert "#" not in plain
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        columns, rows = table
        lines = [line.strip() for line in rows.splitlines() if line.strip().endswith(r"\\")]
        assert len(lines) > 2
        for line in lines:
            assert len(cells_of(line.removesuffix(r" \\"), "&")) == len(columns), line
    assert r"\textbf{better}" in body
    escaped = r"a\_b\&c\%d\$e\#f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j$|$k[l]$<$m$>$*n`o"
    assert escaped in body


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_latex_compiles(comparison, tmp_path):
    (tmp_path / "comparison.tex").write_text(latex(comparison), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{comparison}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]


def test_csv_has_every_digit(comparison):
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert len(lines) == len(comparison.results)
    found = {(line["cell"], line["ablation"], line["metric"]): line for line in lines}
    for one in comparison.differences:
        line = found[one.cell, one.method, one.metric]
        assert float(line["difference"]) == one.mean
        assert (float(line["low"]), float(line["high"])) == one.interval
        assert line["verdict"] == one.verdict
        assert line["seeds"] == " ".join(map(str, one.seeds))
        assert line["data"] in line["cell"]
        assert line["split"] == "a" * 64
    for one in comparison.results:
        line = found[one.cell, one.method, one.metric]
        assert float(line["mean"]) == one.mean
        assert line["gap"] == ("" if one.metric == "recall_at_1" else str(one.gap)), "NaN is empty"
    assert found["cub · triplet", "baseline", "map_at_r"]["difference"] == ""
    lines = list(csv.DictReader(io.StringIO(overall_csv(comparison))))
    assert [(line["method"], line["metric"]) for line in lines] == [
        (one.method, one.metric) for one in comparison.overall
    ]
    assert [float(line["p_holm"]) for line in lines] == [one.p_holm for one in comparison.overall]


def test_csv_of_runs_has_the_failed_one_too(runs):
    lines = list(csv.DictReader(io.StringIO(runs_csv(runs, "trainer.max_epochs"))))
    assert len(lines) == 36
    for run, line in zip((*runs.finished, *runs.unfinished), lines, strict=True):
        assert line["folder"] == str(run.folder)
        assert float(line["unseen/map_at_r"]) == run.record.metrics["unseen"]["map_at_r"]
        assert line["trainer.max_epochs"] == "4"
    assert (lines[-1]["status"], lines[-1]["error"]) == ("failed", "RuntimeError: out of\nmemory 5 %")


def test_notes_say_what_is_missing_on_one_line(comparison):
    [missing] = [note for note in notes(comparison) if note.startswith("Missing")]
    assert missing == (
        "Missing: cub · multi_similarity, full, seed 1: failed: RuntimeError: out of memory 5 %."
    )


def test_notes_name_the_smallest_p_and_the_cells_that_it_takes(comparison):
    [note] = [note for note in notes(comparison) if note.startswith("Over cells")]
    assert "0.12 with 4 cells" in note
    # Four comparisons: 2/2ⁿ · 4 ≤ 0.05 from eight cells on.
    assert "corrected for 4 comparisons" in note
    assert "at least 8 cells" in note


def test_a_cell_without_a_difference_counts_among_the_cells(record, runs_of):
    runs = [
        record(method, loss=f"loss {loss}", value=0.5 + (method == "full") * loss / 10)
        for method in ("baseline", "full")
        for loss in range(4)
    ]
    comparison = compare(runs_of(*runs))
    assert "at least 0.12 with 4 cells" in "\n".join(notes(comparison))
    [found] = [one for one in comparison.overall if one.metric == "map_at_r"]
    assert (found.p_value, found.smallest_p) == (0.25, 0.125)


def test_a_note_is_one_line_whatever_was_typed(record, runs_of):
    runs = runs_of(record("baseline"), record("full", config={"data.note": "one\n\n% two"}))
    assert all("\n" not in note for note in notes(compare(runs)))


def test_notes_on_what_is_in_the_difference_beside_the_method(record, runs_of):
    runs = runs_of(
        record("baseline"),
        record("full", config={"trainer.max_epochs": 20}),
        record("full", 1, config={"trainer.max_epochs": 20}),
        record("full", 1, config={"trainer.max_epochs": 20}),
        record("cann", split="f" * 64),
    )
    text = "\n".join(notes(compare(runs)))
    assert "full is baseline with adversary none → grl, fusion last → attention." in text
    assert "full and baseline differ also in trainer.max_epochs (4 → 20, in every pair)." in text
    assert "cub · triplet: not paired, the splits differ: cann has ffffffff, baseline has aaaaaaaa." in text
    assert "Missing: cub · triplet · split aaaaaaaa, baseline, seed 1: no run." in text
    assert "'runs/003' finished last and counts, not 'runs/002'." in text
    assert "several machines" not in text


def test_notes_on_seeds_and_machines(record, runs_of):
    other = dataclasses.replace(record().environment, accelerators=["a GPU"])
    runs = runs_of(
        record("baseline", 0), record("baseline", 1), record("full", 0, environment=other),
        record("full", 1, config={"trainer.max_epochs": 20}),
    )  # fmt: skip
    text = "\n".join(notes(compare(runs)))
    assert "differ also in trainer.max_epochs (4 → 20, in 1 of 2 pairs)" in text
    assert "Runs of full in one cell differ from seed to seed in trainer.max_epochs (4 → 20" in text
    assert "several machines (a GPU; a processor, 2 cores)" in text
