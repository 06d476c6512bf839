"""Embeddings and labels → a scalar. Built on pytorch-metric-learning, behind `adapter`."""

from unseen.losses.adapter import MetricLoss, pair_loss, proxy_loss
from unseen.losses.memory import CrossBatchMemory
from unseen.losses.parameters import parameters_by_kind

__all__ = ["CrossBatchMemory", "MetricLoss", "pair_loss", "parameters_by_kind", "proxy_loss"]
