"""Embeddings to neighbours, metrics and re-ranking. Needs only torch, NumPy and Numba.

`RetrievalMetric` needs torchmetrics as well, NMI and AMI scikit-learn; both are imported when asked for.
"""

from typing import TYPE_CHECKING, Any

from unseen.retrieval.evaluate import RetrievalResult, evaluate
from unseen.retrieval.reranking import expand_queries, k_reciprocal
from unseen.retrieval.search import Neighbours, search

if TYPE_CHECKING:
    from unseen.retrieval.metric import RetrievalMetric

__all__ = [
    "Neighbours",
    "RetrievalMetric",
    "RetrievalResult",
    "evaluate",
    "expand_queries",
    "k_reciprocal",
    "search",
]


def __getattr__(name: str) -> Any:
    if name == "RetrievalMetric":
        from unseen.retrieval.metric import RetrievalMetric

        return RetrievalMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
