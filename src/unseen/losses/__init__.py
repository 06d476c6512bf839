"""Embeddings and labels → a scalar. Built on pytorch-metric-learning, behind `adapter`."""

from unseen.losses.adapter import MetricLoss, as_metric_loss, pair_loss, proxy_loss
from unseen.losses.introspection import introspective
from unseen.losses.memory import CrossBatchMemory, not_remembering, remembering_afterwards
from unseen.losses.parameters import parameters_by_kind
from unseen.losses.virtual import loss_among
from unseen.losses.weighted_sum import WeightedSum, weighted_sum

__all__ = [
    "CrossBatchMemory",
    "MetricLoss",
    "WeightedSum",
    "as_metric_loss",
    "introspective",
    "loss_among",
    "not_remembering",
    "pair_loss",
    "parameters_by_kind",
    "proxy_loss",
    "remembering_afterwards",
    "weighted_sum",
]
