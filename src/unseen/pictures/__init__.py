"""Pictures of a run. Functions of arrays; each writes one PNG, and none touches matplotlib's global state."""

from unseen.pictures.attention import attention_overlays
from unseen.pictures.classes import class_strip
from unseen.pictures.curves import training_curves
from unseen.pictures.embedding_map import choose_images, embedding_map, project
from unseen.pictures.importance import importance_bars
from unseen.pictures.retrieval import choose_queries, retrieval_sheet

__all__ = [
    "attention_overlays",
    "choose_images",
    "choose_queries",
    "class_strip",
    "embedding_map",
    "importance_bars",
    "project",
    "retrieval_sheet",
    "training_curves",
]
