"""Distances that count less the less certain they are: introspective metric learning (Wang et al. 2022)."""

from __future__ import annotations

import copy

import torch
from pytorch_metric_learning.distances import BaseDistance, DotProductSimilarity, LpDistance
from torch import Tensor, nn

from unseen.losses.adapter import MetricLoss
from unseen.losses.parameters import parameters_by_kind


class IntrospectiveDistance(BaseDistance):
    r"""Euclidean distance D or cosine of semantic embeddings, shrunk by what two images are uncertain of.

    .. math:: \tilde D_{ij}^2 = D_{ij}^2 \exp\left(-\frac{\|u_i + u_j\|^2 + \gamma}{\tau D_{ij}^2}\right),
        \qquad \tilde s_{ij} = 1 - \tilde D_{ij}^2 / 2

    as in the authors' code (IDML, arXiv:2205.04449 and 2309.09982; γ = 4, τ = 5), which has it for images and
    proxies, whose u is zero. That the u of two images are added is ours: by their difference two images of
    the same ambiguity would be certain.

    Args:
        semantic: what is shrunk: Euclidean distance, of any power, or cosine similarity.
        bias: γ.
        temperature: τ.

    Raises:
        ValueError: a number is not positive, or it is another distance.
    """

    def __init__(self, semantic: BaseDistance, *, bias: float, temperature: float) -> None:
        if not (bias > 0 and temperature > 0):
            raise ValueError(f"bias={bias}, temperature={temperature}: wanted two positive numbers.")
        euclidean = isinstance(semantic, LpDistance) and semantic.p == 2
        cosine = isinstance(semantic, DotProductSimilarity) and semantic.power == 1
        if not euclidean and not (cosine and semantic.normalize_embeddings):
            raise ValueError(
                f"{type(semantic).__name__} is neither a Euclidean distance nor a cosine, so what it becomes "
                "by uncertainty is not known."
            )
        super().__init__(normalize_embeddings=False, is_inverted=semantic.is_inverted)
        self.semantic, self.bias, self.temperature = semantic, bias, temperature

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """`(B, 2d)` and `(R, 2d)`, semantic embeddings and behind them the uncertain ones, → `(B, R)`."""
        (query, unsure), (reference, of_reference) = query_emb.chunk(2, dim=1), ref_emb.chunk(2, dim=1)
        given = self.semantic(query, reference)
        uncertainty = _squares(unsure, -of_reference) + self.bias
        # At zero all that it divides is shrunk to nothing, with its gradient.
        squared = _squares(*map(self.semantic.maybe_normalize, (query, reference))).clamp(min=1e-4)
        exponent = -uncertainty / (self.temperature * squared)
        if self.is_inverted:
            return 1 - (1 - given) * exponent.exp()
        return given * (exponent * (self.semantic.power / 2)).exp()

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Not defined: losses that ask for it look at embeddings otherwise than by distances."""
        raise NotImplementedError

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: object) -> Tensor:
        """Not defined, as `pairwise_distance`."""
        raise NotImplementedError


class _SemanticMiner(nn.Module):
    """Chooses pairs by semantic embeddings alone, as some miners go by the number of dimensions."""

    def __init__(self, miner: nn.Module) -> None:
        super().__init__()
        self.miner = miner

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        half = embeddings.shape[1] // 2
        references = None if references is None else references[:, :half]
        indices: tuple[Tensor, ...] = self.miner(embeddings[:, :half], labels, references, reference_labels)
        return indices


def introspective(loss: nn.Module, *, bias: float, temperature: float) -> nn.Module:
    """A copy of a loss of pairs that compares semantic and uncertain embeddings, `(B, 2d)`.

    Args:
        loss: `(embeddings, labels, ids)` → scalar, made for embeddings of size 2d.
        bias: γ, see `IntrospectiveDistance`.
        temperature: τ.

    Raises:
        ValueError: the loss has proxies, or looks at embeddings otherwise than by distances.
    """
    changed = copy.deepcopy(loss)
    if list(parameters_by_kind(changed)["proxies"]):
        raise ValueError(
            "The loss has proxies. In introspective metric learning (Wang et al. 2022) a proxy is certain, "
            "and uncertain embeddings have length 1, so distances to proxies would not depend on them. "
            "Choose a loss of pairs, such as loss=multi_similarity."
        )
    parts = [part for part in changed.modules() if isinstance(part, MetricLoss)]
    if not parts:
        raise ValueError(f"{type(loss).__name__} is not known to compare embeddings by a distance.")
    for part in parts:
        _change(part, bias, temperature)
    return changed


def _change(part: MetricLoss, bias: float, temperature: float) -> None:
    name = type(part.function).__name__
    advice = f"{name} cannot be made introspective. Choose another loss of pairs: loss=multi_similarity."
    if not isinstance(getattr(part.function, "distance", None), BaseDistance):
        raise ValueError(f"It has no distance of pytorch-metric-learning: {advice}")
    try:
        part.function.distance = IntrospectiveDistance(
            part.function.distance,
            bias=bias,
            temperature=temperature,
        )
        # Ask the loss itself.
        part.function(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    except NotImplementedError as error:
        raise ValueError(f"It looks at embeddings otherwise than by distances: {advice}") from error
    if part.miner is not None:
        part.miner = _SemanticMiner(part.miner)


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distances, `(B, d)` and `(R, d)` → `(B, R)`."""
    lengths = one.square().sum(dim=1)[:, None] + other.square().sum(dim=1)
    return (lengths - 2 * one @ other.T).clamp(min=0)
