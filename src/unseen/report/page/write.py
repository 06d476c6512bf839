"""The page: a template, its style and scripts, vendored libraries, and the data as JSON."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from unseen.files import replacing, storable
from unseen.report.comparison import Comparison
from unseen.report.page.content import page_content
from unseen.report.runs import Runs

STYLES = ("vendor/tabulator_simple.min.css", "template/page.css")
LIBRARIES = (
    "vendor/tabulator.min.js",
    "vendor/vega.min.js",
    "vendor/vega-lite.min.js",
    "vendor/vega-embed.min.js",
)
SCRIPTS = tuple(
    f"template/{name}.js"
    for name in (
        "data",
        "format",
        "elements",
        "charts",
        "summary",
        "tables",
        "curves",
        "classes",
        "pair",
        "dialog",
        "page",
    )
)
"""In the order in which they use each other."""


def write_page(path: Path, comparison: Comparison, runs: Runs) -> None:
    """Write one HTML file, atomically, that opens from a disk.

    Curves, retrieval sheets and values of single classes are read from the folders of a bounded number of
    runs; the page says so where it leaves some out.

    Args:
        path: of the file.
        comparison: of the runs.
        runs: all of them, those that failed too.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    content = json.dumps(page_content(comparison, runs, path.parent), ensure_ascii=False, allow_nan=False)
    parts = {
        "styles": _joined(STYLES, "style"),
        "libraries": _joined(LIBRARIES, "script"),
        # Within a script element, nothing but `<` can end it or begin a comment.
        "content": storable(content).replace("<", "\\u003c"),
        "scripts": _joined(SCRIPTS, "script"),
    }
    template = _read("template/page.html")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _joined(names: tuple[str, ...], element: str) -> str:
    return "\n".join(f"<{element}>\n{_read(name)}\n</{element}>" for name in names)


def _read(name: str) -> str:
    text = (files("unseen.report.page") / name).read_text(encoding="utf-8")
    # A debugger would ask for these; they are not packed.
    return re.sub(r"^(//# |/\*# )sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
