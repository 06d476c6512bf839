"""Proxy-NCA as published: pytorch-metric-learning's loss of that name is of the form of Proxy-NCA++."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unseen.losses.proxies import unit_length


class ProxyNCA(nn.Module):
    r"""Proxy-NCA (Movshovitz-Attias et al. 2017, arXiv:1703.07464, eq. 4).

    .. math:: -\log\frac{\exp(-d(x, p_y))}{\sum_{z \ne y}\exp(-d(x, p_z))}

    where $d$ is `scale` times the squared distance of unit vectors. The own proxy is not in the denominator,
    so the loss may fall below zero.

    Args:
        num_classes: C.
        embedding_size: d.
        scale: the square of the length to which embeddings and proxies are brought.
    """

    def __init__(self, num_classes: int, embedding_size: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        unit_length(self.proxies, dim=1)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over embeddings `(B, d)` with labels `(B,)` in 0..C-1."""
        cosines = nn.functional.normalize(embeddings) @ nn.functional.normalize(self.proxies).t()
        distances = self.scale * (2 - 2 * cosines)
        own = nn.functional.one_hot(labels, len(self.proxies)).bool()
        others = torch.logsumexp(-distances.masked_fill(own, torch.inf), dim=1)
        return (distances[own] + others).mean()
