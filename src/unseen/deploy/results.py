"""What a search found, on a terminal or in a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from unseen.files import replacing

Rows = Sequence[dict[str, Any]]


def show(rows: Rows, *, most: int) -> None:
    """Print a table for each query, of at most so many."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    queries = [(name, list(some)) for name, some in groupby(rows, key=lambda row: str(row["query"]))]
    for name, some in queries[:most]:
        columns = sorted((column for column in some[0] if column != "query"), key="path".__eq__)
        table = Table(title=name, title_justify="left", box=None)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in some:
            table.add_row(*(_text(row[column]) for column in columns))
        console.print(table, soft_wrap=True)
    if len(queries) > most:
        console.print(f"{len(queries) - most} more queries: give output=found.csv for all.")


def write(rows: Rows, path: Path) -> None:
    """Write all as a CSV."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["query"])
        writer.writeheader()
        writer.writerows(rows)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
