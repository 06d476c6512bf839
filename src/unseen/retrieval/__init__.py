"""Embeddings to neighbours, metrics and re-ranking. Needs only torch, NumPy and Numba.

    evaluate        named metrics of embeddings and labels, from one exact search
    search          the k nearest neighbours of each query, exactly
    RetrievalMetric `evaluate` as a torchmetrics.Metric, fed batch by batch
    expand_queries, k_reciprocal
                    second looks at a ranking: query expansion, k-reciprocal re-ranking

`RetrievalMetric` needs torchmetrics as well, NMI and AMI scikit-learn; both are imported when asked for. What
makes exactness fast is in `engine/`, and no part of the face.
"""

from typing import TYPE_CHECKING, Any

from unseen.retrieval.evaluate import RetrievalResult, evaluate
from unseen.retrieval.reranking import expand_queries, k_reciprocal
from unseen.retrieval.search import Neighbours, search

if TYPE_CHECKING:
    from unseen.retrieval.torchmetric import RetrievalMetric

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
        from unseen.retrieval.torchmetric import RetrievalMetric

        return RetrievalMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
