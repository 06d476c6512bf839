"""The same numbers as pytorch-metric-learning, torchmetrics and scikit-learn, where they mean the same."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR

from unseen.retrieval import evaluate


@pytest.fixture(scope="module")
def clustered():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 25, 300)
    centres = rng.normal(size=(25, 12))
    vectors = centres[labels] + rng.normal(size=(300, 12))
    return torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture(scope="module")
def whole_result(clustered):
    asked = {"mean_average_precision": True, "mrr": True, "nmi": True, "ami": True}
    return evaluate(*clustered, recall_at=(1, 4), precision_at=(1,), **asked)


def test_accuracy_calculator_agrees(clustered, whole_result):
    calculators = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision")
    calculator = calculators.AccuracyCalculator(
        include=(*names, "mean_reciprocal_rank"),
        k=None,
        knn_func=inference.CustomKNN(calculators_distance()),
    )
    theirs = calculator.get_accuracy(*clustered)
    ours = whole_result.metrics
    assert ours["precision_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["recall_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert ours["mean_average_precision"] == pytest.approx(theirs["mean_average_precision"], abs=1e-6)
    assert ours["mrr"] == pytest.approx(theirs["mean_reciprocal_rank"], abs=1e-6)


def calculators_distance():
    from pytorch_metric_learning.distances import CosineSimilarity

    return CosineSimilarity()


def test_torchmetrics_agrees(clustered, whole_result):
    vectors, labels = clustered
    unit = torch.nn.functional.normalize(vectors.double())
    others = ~torch.eye(len(labels), dtype=torch.bool)
    # torchmetrics takes items of score 0 or less for irrelevant: shift all above.
    scores = (unit @ unit.T)[others].float() + 2
    relevant = (labels[:, None] == labels)[others]
    queries = torch.arange(len(labels))[:, None].expand_as(others)[others]
    for metric, name in (
        (RetrievalHitRate(top_k=1), "recall_at_1"),
        (RetrievalHitRate(top_k=4), "recall_at_4"),
        (RetrievalMAP(), "mean_average_precision"),
        (RetrievalMRR(), "mrr"),
    ):
        assert whole_result.metrics[name] == pytest.approx(metric(scores, relevant, queries).item(), abs=1e-6)


def test_average_precision_of_each_query_is_that_of_scikit_learn(clustered, whole_result):
    vectors, labels = clustered
    unit = torch.nn.functional.normalize(vectors.double())
    scores = (unit @ unit.T).numpy()
    for query in range(0, 300, 17):
        others = np.arange(300) != query
        expected = average_precision_score((labels == labels[query])[others], scores[query][others])
        assert whole_result.per_query["mean_average_precision"][query] == pytest.approx(expected, abs=1e-9)


def test_whole_rankings_with_ids_ties_and_a_gallery():
    rng = np.random.default_rng(3)
    queries, gallery = rng.integers(-1, 2, (40, 4)), rng.integers(-1, 2, (70, 4))
    labels, gallery_labels = rng.integers(0, 9, 40), rng.integers(0, 9, 70)
    ids, gallery_ids = rng.permutation(200)[:40], rng.permutation(200)[:70]
    label_of = dict(zip(ids, labels, strict=True))  # an id is of one image, in both
    gallery_labels = np.array(
        [label_of.get(i, one) for i, one in zip(gallery_ids, gallery_labels, strict=True)]
    )
    result = evaluate(
        queries.astype(np.float32),
        labels,
        gallery=gallery.astype(np.float32),
        gallery_labels=gallery_labels,
        ids=ids,
        gallery_ids=gallery_ids,
        similarity="dot",
        mean_average_precision=True,
        mrr=True,
    )
    for i in range(40):
        order = sorted(range(70), key=lambda j: (-(queries[i] @ gallery[j]), gallery_ids[j]))
        right = [labels[i] == gallery_labels[j] for j in order if gallery_ids[j] != ids[i]]
        ranks = [rank for rank, hit in enumerate(right, 1) if hit]
        if not ranks:
            assert result.per_query["mrr"][i].isnan()
            continue
        assert result.per_query["mrr"][i] == pytest.approx(1 / ranks[0])
        expected = np.mean([n / rank for n, rank in enumerate(ranks, 1)])
        assert result.per_query["mean_average_precision"][i] == pytest.approx(expected)


def test_whole_rankings_come_back_in_the_order_of_the_queries():
    vectors, labels = torch.randn(30, 4), torch.arange(30) % 4
    straight = evaluate(vectors, labels, mrr=True)
    turned = evaluate(vectors, labels, mrr=True, ids=torch.arange(30).flip(0))
    assert torch.equal(straight.per_query["mrr"], turned.per_query["mrr"])


def test_clusters_of_separated_classes_agree_fully_and_of_noise_by_chance():
    labels = torch.arange(120) % 6
    apart = torch.eye(6)[labels] + 0.01 * torch.randn(120, 6)
    result = evaluate(apart, labels, nmi=True, ami=True)
    assert result.metrics["nmi"] == pytest.approx(1)
    assert result.metrics["ami"] == pytest.approx(1)
    noise = evaluate(torch.randn(120, 6), labels, ami=True)
    assert "nmi" not in noise.metrics
    assert abs(noise.metrics["ami"]) < 0.1


def test_mutual_information_is_that_of_scikit_learn(clustered, whole_result):
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    vectors, labels = clustered
    points = torch.nn.functional.normalize(vectors).numpy()
    clusters = KMeans(n_clusters=25, n_init=1, random_state=0).fit_predict(points)
    expected = normalized_mutual_info_score(labels.numpy(), clusters)
    assert whole_result.metrics["nmi"] == pytest.approx(expected)
