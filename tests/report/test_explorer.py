"""The table of errors: rows, neighbours and pictures as an explorer of embeddings wants them."""

from __future__ import annotations

import dataclasses
import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseen.data.manifest import Manifest
from unseen.report.explorer import write_errors
from unseen.report.runs import Run
from unseen.tracking.record import RunRecord, save_queries

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200)]


@pytest.fixture
def run(tmp_path: Path, record: Callable[..., RunRecord]) -> Run:
    """Six images of three classes, of which the last four are queries and all but the first are gallery."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    for row, label in enumerate(labels):
        Image.new("RGB", (200, 100), COLOURS[label]).save(tmp_path / f"{row}.png")
    manifest = Manifest(
        root=tmp_path,
        paths=tuple(f"{row}.png" for row in range(6)),
        labels=labels,
        class_names=("red", "green", "blue"),
        roles=np.array(["train", "train", "query", "query", "query", "query"]),
    )
    folder = tmp_path / "run"
    manifest.save(folder / "manifest.csv")
    columns = {
        "ids": np.array([2, 3, 4, 5]),
        "labels": labels[2:],
        "recall_at_1": np.array([1.0, 0.0, 1.0, np.nan]),
        "neighbours": np.array([[3, 4], [5, 2], [5, -1], [-1, -1]]),
        "similarities": np.array([[0.75, 0.5], [0.5, 0.25], [0.5, -np.inf], [-np.inf, -np.inf]], np.float32),
        "position": np.arange(8, dtype=np.float32).reshape(4, 2),
    }
    save_queries(folder / "queries.npz", columns)
    return Run(folder, record())


def test_rows_neighbours_and_pictures(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    [path] = write_errors([run])
    rows = parquet.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == [2, 3, 4, 5]
    assert [row["label"] for row in rows] == ["green", "green", "blue", "blue"]
    assert [row["predicted"] for row in rows] == ["green", "blue", "blue", None]
    assert [row["right"] for row in rows] == [True, False, True, False]
    assert [row["similarity"] for row in rows] == [0.75, 0.5, 0.5, None]
    assert [(row["x"], row["y"]) for row in rows] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [row["neighbour_paths"] for row in rows] == [["3.png", "4.png"], ["5.png", "2.png"], ["5.png"], []]
    # An explorer counts the rows of the table, from 0.
    assert [row["neighbors"]["ids"] for row in rows] == [[1, 2], [3, 0], [3], []]
    assert rows[0]["neighbors"]["distances"] == [0.25, 0.5]
    assert rows[0]["recall_at_1"] == 1.0
    picture = Image.open(io.BytesIO(rows[3]["thumbnail"]["bytes"]))
    assert picture.size == (96, 48)
    np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), COLOURS[2], atol=6)


def test_neighbours_outside_the_table_are_named_but_have_no_row(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with np.load(run.folder / "queries.npz") as saved:
        columns = {**saved, "neighbours": np.array([[0, 3], [1, 0], [5, -1], [-1, -1]])}
    save_queries(run.folder / "queries.npz", columns)
    rows = parquet.read_table(write_errors([run])[0]).to_pylist()
    assert [row["predicted"] for row in rows] == ["red", "red", "blue", None]
    assert [row["neighbors"]["ids"] for row in rows] == [[1], [], [3], []]
    assert rows[0]["neighbors"]["distances"] == [0.5]


def test_images_that_are_gone_leave_a_table_without_pictures(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "3.png").unlink()
    with caplog.at_level(logging.WARNING):
        rows = parquet.read_table(write_errors([run])[0]).to_pylist()
    assert [row["thumbnail"] is None for row in rows] == [False, True, False, False]
    assert "1 of 4 images" in caplog.text


def test_it_is_written_once_where_there_are_queries(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pyarrow")
    bare = dataclasses.replace(run, folder=run.folder.parent / "bare")
    with caplog.at_level(logging.WARNING):
        [path] = write_errors([run, bare])
    assert "bare" in caplog.text
    written = path.stat().st_mtime_ns
    assert write_errors([run]) == [path]
    assert path.stat().st_mtime_ns == written


def test_without_pyarrow_it_names_the_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"unseen-dml\[explorer\]"):
        write_errors([run])


def test_one_command_writes_them_and_the_page_knows(run: Run, record: Callable[..., RunRecord]) -> None:
    pytest.importorskip("pyarrow")
    record("full", value=0.6).save(run.folder / "record.json")
    record("baseline").save(run.folder.parent / "other" / "record.json")
    subprocess.run(
        [sys.executable, "-m", "unseen", "report", "runs=.", "output=report", "explorer=true"],
        cwd=run.folder.parent,
        check=True,
        capture_output=True,
    )
    assert (run.folder / "errors.parquet").is_file()
    page = (run.folder.parent / "report" / "comparison.html").read_text(encoding="utf-8")
    assert (page.count('"errors": true'), page.count('"errors": false')) == (1, 1)
    assert '"folder": "../run"' in page
