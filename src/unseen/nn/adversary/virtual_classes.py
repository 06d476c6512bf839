"""Virtual classes: between pairs of seen classes stand classes that do not exist, to be kept apart from
both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unseen.nn.adversary.contract import AdversaryInput, ClassAdversary, VirtualClasses
from unseen.nn.mixing import mixed

Choice = Callable[[Tensor], Tensor]
"""How much the head confuses the `P` classes of a batch, symmetric `(P, P)` → how much each pair is
wanted."""


def most_confused(confusion: Tensor) -> Tensor:
    """The adversary's choice: pairs that its head takes for each other."""
    return confusion


def any_pair(confusion: Tensor) -> Tensor:
    """The control: pairs at random."""
    return torch.rand_like(confusion)


class AdversarialVirtualClasses(ClassAdversary):
    """Mixes embeddings, and proxies where the loss has them, of the pairs of classes that the head confuses
    most.

    After Gu et al. 2021 ("Proxy Synthesis", AAAI, arXiv:2103.15454, eq. 5–7), who mix random pairs: class
    `v` of the pair (a, b) has embeddings `norm(μ e_a + (1 − μ) e_b)` and the proxy `μ p_a + (1 − μ) p_b`.
    The loss becomes `(1 − β) L + β L'`, β the strength, L' that of the batch with its virtual classes.

    Args:
        mixing: μ, of the first class of a pair.
        pairs_per_class: virtual classes for each class of the batch.
        choice: which pairs; the control is `any_pair`.
        settings: of `ClassAdversary`.

    Raises:
        ValueError: `mixing` is outside (0, 1), or `pairs_per_class` is not positive.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        mixing: float,
        pairs_per_class: float,
        choice: Choice,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **settings)
        if not 0 < mixing < 1:
            raise ValueError(f"mixing={mixing}: the share of the first class lies in (0, 1).")
        if not pairs_per_class > 0:
            raise ValueError(f"pairs_per_class={pairs_per_class}: wanted a positive number.")
        self.mixing, self.pairs_per_class, self.choice = mixing, pairs_per_class, choice

    @property
    def replaced(self) -> float:
        """β."""
        return self._strength(1.0)

    def strike(self, batch: AdversaryInput, features: Tensor, strength: float) -> Tensor:
        """β (L' − L); zero for a batch of one class."""
        virtual = self._virtual(batch, features)
        if len(virtual.pairs) == 0:
            return batch.metric_loss * 0
        return strength * (batch.metric_among(virtual) - batch.metric_loss)

    def _virtual(self, batch: AdversaryInput, features: Tensor) -> VirtualClasses:
        with torch.no_grad():
            posterior = self.as_constant(features).softmax(dim=1)
        pairs = self._pairs(posterior, batch.labels)
        embedding = batch.embedded.embedding
        mixtures, labels = [], []
        for number, (first, second) in enumerate(pairs.tolist()):
            one, other = embedding[batch.labels == first], embedding[batch.labels == second]
            count = min(len(one), len(other))
            mixtures.append(mixed(one[:count], other[:count], self.mixing, batch.embedder.normalize))
            labels += [number] * count
        return VirtualClasses(
            torch.cat(mixtures) if mixtures else embedding[:0],
            torch.tensor(labels, device=pairs.device, dtype=torch.int64),
            pairs,
            share=self.mixing,
            num_classes=posterior.shape[1],
        )

    def _pairs(self, posterior: Tensor, labels: Tensor) -> Tensor:
        """Pairs `(V, 2)` of seen labels that are in the batch, the most wanted first."""
        present, position = labels.unique(return_inverse=True)
        member = functional.one_hot(position).to(posterior.dtype)
        taken_for = (member.T @ posterior)[:, present] / member.sum(dim=0).unsqueeze(1)
        wanted = self.choice(taken_for + taken_for.T)
        first, second = torch.triu_indices(len(present), len(present), offset=1, device=labels.device)
        count = min(len(first), max(1, round(self.pairs_per_class * len(present))))
        chosen = wanted[first, second].topk(count).indices
        return torch.stack([present[first[chosen]], present[second[chosen]]], dim=1)
