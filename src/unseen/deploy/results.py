"""What was found, on a terminal or in a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from unseen.deploy.listing import pyarrow
from unseen.files import replacing

Rows = Sequence[dict[str, Any]]


def show(rows: Rows, *, most: int) -> None:
    """Print a table for each query, of at most so many."""
    queries = [(name, list(some)) for name, some in groupby(rows, key=lambda row: str(row["query"]))]
    for name, some in queries[:most]:
        columns = sorted((column for column in some[0] if column != "query"), key="path".__eq__)
        show_table(name, some, columns)
    if len(queries) > most:
        print(f"{len(queries) - most} more queries: give output=found.csv for all.")


def show_table(title: str, rows: Rows, columns: Sequence[str]) -> None:
    """Print some columns of rows under a title."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None)
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(row[column])) for column in columns))
    Console().print(table, soft_wrap=True)


def check_table(path: Path) -> None:
    """Refuse what `write` does not know, before there is anything to write.

    Raises:
        ValueError: the file's name ends otherwise than `.csv` or `.parquet`.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"output={path}: wanted a file whose name ends in .csv or .parquet.")


def write(rows: Rows, path: Path, columns: Sequence[str] = ("query",)) -> None:
    """Write all as a CSV, or as Parquet where the name says so.

    Args:
        rows: of the same columns.
        path: ending in `.parquet` or `.csv`.
        columns: where there are no rows.

    Raises:
        ValueError: the file's name ends otherwise.
    """
    check_table(path)
    names = list(rows[0]) if rows else list(columns)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            arrow = pyarrow()
            texts = {name: [_letters(row[name]) for row in rows] for name in names}
            arrow.parquet.write_table(arrow.table(texts), temporary)
            return
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)


def _letters(value: Any) -> Any:
    """A file name may hold bytes that are no text, which Parquet refuses."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
