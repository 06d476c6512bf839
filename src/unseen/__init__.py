"""Deep metric learning that generalises to classes which training never saw.

`unseen.dataset`, `unseen.embedder`, `unseen.fit` and `unseen.evaluate` are the library; `unseen.load` takes
what was trained into use; `unseen.load_runs` and `unseen.compare` say what several runs show. `unseen train`
and `unseen report` are the same from a command line. Everything is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseen.deploy.bundle import load
    from unseen.library import Dataset, Fitted, dataset, embedder, fit
    from unseen.nn.embedder import Embedder
    from unseen.report.comparison import compare
    from unseen.report.runs import load_runs
    from unseen.retrieval import evaluate

__all__ = [
    "Dataset",
    "Embedder",
    "Fitted",
    "__version__",
    "compare",
    "dataset",
    "embedder",
    "evaluate",
    "fit",
    "load",
    "load_runs",
]

_HOMES = {
    "Embedder": "unseen.nn.embedder",
    "compare": "unseen.report.comparison",
    "evaluate": "unseen.retrieval",
    "load": "unseen.deploy.bundle",
    "load_runs": "unseen.report.runs",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("unseen-dml")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "unseen.library")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
