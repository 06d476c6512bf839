"""The files of a comparison."""

from __future__ import annotations

from pathlib import Path

from unseen.files import replacing
from unseen.report.comparison import Comparison
from unseen.report.runs import Runs
from unseen.report.tables import comparison_csv, latex, markdown, overall_csv, runs_csv


def write_tables(folder: Path, comparison: Comparison, runs: Runs) -> list[Path]:
    """Write the tables, each file atomically; what was there before is replaced.

    Args:
        folder: is made where it is not there.
        comparison: of the runs.
        runs: all of them, unfinished ones too.

    Returns:
        The files: comparison.csv, overall.csv, runs.csv, comparison.md, comparison.tex.

    Raises:
        OSError: the folder cannot be written.
    """
    texts = {
        "comparison.csv": comparison_csv(comparison),
        "overall.csv": overall_csv(comparison),
        "runs.csv": runs_csv(runs, comparison.compare),
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
    }
    for name, text in texts.items():
        with replacing(Path(folder) / name) as temporary:
            # Names of files and folders may be no UTF-8.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [Path(folder) / name for name in texts]
