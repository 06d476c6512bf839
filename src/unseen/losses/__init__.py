"""Embeddings and labels → a scalar. Built on pytorch-metric-learning, behind `adapter`."""

from unseen.losses.adapter import MetricLoss, pair_loss, proxy_loss
from unseen.losses.memory import CrossBatchMemory

__all__ = ["CrossBatchMemory", "MetricLoss", "pair_loss", "proxy_loss"]
