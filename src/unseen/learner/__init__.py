"""The one room where networks, losses and retrieval meet."""

from unseen.learner.metric_learner import MetricLearner

__all__ = ["MetricLearner"]
