"""Every loss against its published formula, in explicit loops over float64."""

from math import cos, exp, log, log1p, pi, sin, sqrt, tan
from pathlib import Path

import numpy as np
import pytest
import torch

# A combined loss is the sum of others: test_weighted_sum.py.
CHOICES = sorted(
    path.stem
    for path in Path(__file__).parents[2].joinpath("conf/loss").glob("[!_]*.yaml")
    if path.stem != "combined"
)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distance(e):
    return np.linalg.norm(e[:, None] - e[None], axis=2)


def positives(y, i):
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def negatives(y, i):
    return [j for j in range(len(y)) if y[j] != y[i]]


def triplets(y):
    return [(a, p, n) for a in range(len(y)) for p in positives(y, a) for n in negatives(y, a)]


def mean_nonzero(values):
    kept = [value for value in values if value > 0]
    return sum(kept) / len(kept) if kept else 0.0


def mean(values):
    return sum(values) / len(values)


def contrastive(e, y):
    d = distance(unit(e))
    own = [d[i, j] for i in range(len(y)) for j in positives(y, i)]
    other = [max(0, 1 - d[i, j]) for i in range(len(y)) for j in negatives(y, i)]
    return mean_nonzero(own) + mean_nonzero(other)


def triplet(e, y):
    d = distance(unit(e)) ** 2
    semi_hard = [(a, p, n) for a, p, n in triplets(y) if 0 < d[a, n] - d[a, p] <= 0.2]
    return mean_nonzero([max(0, d[a, p] - d[a, n] + 0.2) for a, p, n in semi_hard])


def n_pair(e, y):
    anchors = [next(i for i in range(len(y)) if y[i] == c) for c in sorted(set(y))]
    chosen = [positives(y, a)[0] for a in anchors]
    losses = [
        log(sum(exp(e[a] @ e[q] - e[a] @ e[p]) for q in chosen)) for a, p in zip(anchors, chosen, strict=True)
    ]
    return mean(losses) + 0.005 * mean([vector @ vector for vector in e])


def lifted_structure(e, y):
    d = distance(unit(e))
    losses = []
    for i in range(len(y)):
        for j in positives(y, i):
            pushed = sum(exp(1 - d[i, k]) for k in negatives(y, i)) + sum(
                exp(1 - d[j, k]) for k in negatives(y, j)
            )
            losses.append(max(0, log(pushed) + d[i, j]) ** 2 / 2)
    return mean(losses)


def binomial_deviance(e, y):
    s = unit(e) @ unit(e).T
    own = [log1p(exp(-2 * (s[i, j] - 0.5))) for i in range(len(y)) for j in positives(y, i)]
    other = [log1p(exp(2 * 25 * (s[i, j] - 0.5))) for i in range(len(y)) for j in negatives(y, i)]
    return mean(own) + mean(other)


def angular(e, y):
    e, t = unit(e), tan(pi / 4) ** 2
    losses = []
    for a in range(len(y)):
        for p in positives(y, a):
            own = 2 * (1 + t) * (e[a] @ e[p])
            losses.append(log(1 + sum(exp(4 * t * (e[a] + e[p]) @ e[n] - own) for n in negatives(y, a))))
    return mean(losses)


def margin(e, y):
    d = distance(unit(e))
    own = [max(0, d[a, p] - 1.2 + 0.2) for a, p, _ in triplets(y)]
    other = [max(0, 1.2 - d[a, n] + 0.2) for a, _, n in triplets(y)]
    return (sum(own) + sum(other)) / (sum(value > 0 for value in own) + sum(value > 0 for value in other))


def multi_similarity(e, y):
    s = unit(e) @ unit(e).T
    losses = []
    for i in range(len(y)):
        nearest = max(s[i, k] for k in negatives(y, i))
        farthest = min(s[i, k] for k in positives(y, i))
        own = sum(exp(-2 * (s[i, k] - 0.5)) for k in positives(y, i) if s[i, k] - 0.1 < nearest)
        other = sum(exp(50 * (s[i, k] - 0.5)) for k in negatives(y, i) if s[i, k] + 0.1 > farthest)
        losses.append(log(1 + own) / 2 + log(1 + other) / 50)
    return mean(losses)


def circle(e, y):
    s = unit(e) @ unit(e).T
    losses = []
    for i in range(len(y)):
        own = sum(exp(-80 * max(0, 1.4 - s[i, k]) * (s[i, k] - 0.6)) for k in positives(y, i))
        other = sum(exp(80 * max(0, s[i, k] + 0.4) * (s[i, k] - 0.4)) for k in negatives(y, i))
        losses.append(log(1 + own * other))
    return mean_nonzero(losses)


def supcon(e, y):
    s = unit(e) @ unit(e).T / 0.1
    losses = []
    for i in range(len(y)):
        total = log(sum(exp(s[i, k]) for k in range(len(y)) if k != i))
        losses.append(-mean([s[i, k] - total for k in positives(y, i)]))
    return mean_nonzero(losses)


def proxy_nca(e, y, proxies):
    d = 9 * np.linalg.norm(unit(e)[:, None] - unit(proxies)[None], axis=2) ** 2
    others = [[z for z in range(len(proxies)) if z != label] for label in y]
    return mean([-log(exp(-d[i, y[i]]) / sum(exp(-d[i, z]) for z in others[i])) for i in range(len(y))])


def proxy_nca_pp(e, y, proxies):
    d = 9 * np.linalg.norm(unit(e)[:, None] - unit(proxies)[None], axis=2) ** 2
    return mean([-log(exp(-d[i, y[i]]) / np.exp(-d[i]).sum()) for i in range(len(y))])


def proxy_anchor(e, y, proxies):
    s = unit(e) @ unit(proxies).T
    present = sorted(set(y))
    own = sum(log(1 + sum(exp(-32 * (s[i, c] - 0.1)) for i in range(len(y)) if y[i] == c)) for c in present)
    other = sum(
        log(1 + sum(exp(32 * (s[i, c] + 0.1)) for i in range(len(y)) if y[i] != c))
        for c in range(len(proxies))
    )
    return own / len(present) + other / len(proxies)


def soft_triple(e, y, proxies):
    centers = unit(proxies.T).reshape(-1, 10, e.shape[1])
    losses = []
    for i, label in enumerate(y):
        similarity = []
        for own in centers:
            s = own @ unit(e)[i]
            similarity.append(float((np.exp(s / 0.1) / np.exp(s / 0.1).sum()) @ s))
        similarity[label] -= 0.01
        losses.append(-log(exp(20 * similarity[label]) / sum(exp(20 * s) for s in similarity)))
    apart = [
        sqrt(2 - 2 * float(own[s] @ own[t])) for own in centers for s in range(10) for t in range(s + 1, 10)
    ]
    return mean(losses) + 0.2 * sum(apart) / (len(centers) * 10 * 9)


def softmax_of_cosines(e, y, proxies, scale, own_logit):
    s = unit(e) @ unit(proxies.T).T
    losses = []
    for i, label in enumerate(y):
        logits = [scale * (own_logit(s[i, c]) if c == label else s[i, c]) for c in range(s.shape[1])]
        highest = max(logits)
        losses.append(highest + log(sum(exp(logit - highest) for logit in logits)) - logits[label])
    return mean(losses)


def arcface(e, y, proxies):
    m = 28.6 * pi / 180

    def shifted(cosine):
        angle = np.arccos(cosine)
        return cos(angle + m) if angle + m <= pi else cosine - m * sin(m)

    return softmax_of_cosines(e, y, proxies, 64, shifted)


def cosface(e, y, proxies):
    return softmax_of_cosines(e, y, proxies, 64, lambda cosine: cosine - 0.35)


def norm_softmax(e, y, proxies):
    return softmax_of_cosines(e, y, proxies, 20, lambda cosine: cosine)


PAIRS = [
    contrastive,
    triplet,
    n_pair,
    lifted_structure,
    binomial_deviance,
    angular,
    margin,
    multi_similarity,
    circle,
    supcon,
]
PROXIES = [proxy_nca, proxy_nca_pp, proxy_anchor, soft_triple, arcface, cosface, norm_softmax]
# The published miner of `margin` draws at random; all triplets have a fixed value.
OVERRIDES = {"margin": ["miner=none"]}


def batch(seed):
    """14 unit embeddings, near enough to their classes that hinges act on both sides; one class absent."""
    generator = np.random.default_rng(seed)
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4])
    centers = generator.normal(size=(5, 16))
    return unit(centers[labels] + 0.9 * generator.normal(size=(14, 16))), labels


def test_every_choice_has_its_formula_here():
    assert sorted(formula.__name__ for formula in PAIRS + PROXIES) == CHOICES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("formula", PAIRS, ids=lambda formula: formula.__name__)
def test_loss_of_pairs(formula, seed, build_loss):
    embeddings, labels = batch(seed)
    loss = build_loss(formula.__name__, *OVERRIDES.get(formula.__name__, []))
    got = loss(torch.tensor(embeddings), torch.tensor(labels), torch.arange(14))
    assert got.item() == pytest.approx(formula(embeddings, labels), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("formula", PROXIES, ids=lambda formula: formula.__name__)
def test_loss_of_proxies(formula, seed, build_loss):
    embeddings, labels = batch(seed)
    loss = build_loss(formula.__name__)
    (proxies,) = loss.parameters()
    got = loss(torch.tensor(embeddings), torch.tensor(labels), torch.arange(14))
    assert got.item() == pytest.approx(
        formula(embeddings, labels, proxies.detach().double().numpy()), rel=1e-4
    )
