"""Re-ranking against dense loops written from the papers."""

import numpy as np
import pytest
import torch

from unseen.retrieval import evaluate, expand_queries, k_reciprocal, search


def clustered_vectors(count=60, classes=8, width=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    vectors = rng.normal(size=(classes, width))[labels] + 0.9 * rng.normal(size=(count, width))
    return torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels)


def reciprocal_loops(vectors, k1, k2, weight):
    """Zhong et al. 2017, equations 3 to 12, on sets; distances are 1 - cosine."""
    unit = vectors.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    count = len(unit)
    ranking = [[i, *(j for j in np.argsort(distance[i], kind="stable") if j != i)] for i in range(count)]

    def mutual(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    encoded = np.zeros((count, count))
    for i in range(count):
        core = mutual(i, k1)
        whole = set(core)
        for j in core:
            candidates = mutual(j, round(k1 / 2))
            if len(candidates & core) > 2 / 3 * len(candidates):
                whole |= candidates
        members = sorted(whole)
        encoded[i, members] = np.exp(-distance[i, members])
        encoded[i] /= encoded[i].sum()
    encoded = np.stack([encoded[ranking[i][:k2]].mean(axis=0) for i in range(count)])
    least = np.minimum(encoded[:, None], encoded[None]).sum(axis=2)
    most = np.maximum(encoded[:, None], encoded[None]).sum(axis=2)
    return (1 - weight) * (1 - least / most) + weight * distance


@pytest.mark.parametrize(("reach", "expansion", "original"), [(6, 3, 0.3), (10, 1, 0.0), (20, 6, 1.0)])
@pytest.mark.parametrize("block", [7, 256])
def test_k_reciprocal_equals_the_loops(reach, expansion, original, block):
    vectors, _ = clustered_vectors()
    neighbours = search(vectors, k=25)
    ours = k_reciprocal(vectors, neighbours, reach, expansion, original, block)
    expected = reciprocal_loops(vectors, reach, expansion, original)
    theirs = np.take_along_axis(expected, ours.positions.numpy(), axis=1)
    np.testing.assert_allclose(-ours.similarities.numpy(), theirs, atol=1e-5)
    assert (np.diff(-ours.similarities.numpy(), axis=1) >= 0).all()
    assert torch.equal(ours.positions.sort(dim=1).values, neighbours.positions.sort(dim=1).values)


def test_k_reciprocal_asks_for_enough_neighbours():
    vectors, _ = clustered_vectors()
    with pytest.raises(ValueError, match="needs 20 neighbours"):
        k_reciprocal(vectors, search(vectors, k=5))


def test_expanded_queries_are_the_weighted_means():
    vectors, _ = clustered_vectors()
    neighbours = search(vectors, k=5)
    unit = torch.nn.functional.normalize(vectors.double())
    for power in (0.0, 3.0):
        ours = expand_queries(vectors, vectors, neighbours, count=4, power=power)
        for i in range(len(vectors)):
            best = [j for j in (unit @ unit[i]).argsort(descending=True).tolist() if j != i][:4]
            total = unit[i] + sum((unit[i] @ unit[j]).clamp(min=0) ** power * unit[j] for j in best)
            assert torch.allclose(ours[i].double(), total / total.norm(), atol=1e-5)


def test_re_ranking_helps_noisy_clusters():
    vectors, labels = clustered_vectors(400, 20, 12)
    before = evaluate(vectors, labels)
    after = evaluate(
        expand_queries(vectors, vectors, search(vectors, k=10), count=5),
        labels,
        gallery=vectors,
        gallery_labels=labels,
        ids=torch.arange(400),
        gallery_ids=torch.arange(400),
    )
    assert after.metrics["map_at_r"] > before.metrics["map_at_r"]
