"""Embeddings to neighbours, metrics, index and re-ranking. Needs only torch and NumPy."""

from unseen.retrieval.evaluate import RetrievalResult, evaluate
from unseen.retrieval.search import Neighbours, search

__all__ = ["Neighbours", "RetrievalResult", "evaluate", "search"]
