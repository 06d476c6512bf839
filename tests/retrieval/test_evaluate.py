"""`evaluate` against loops over float64 similarities, written from the definitions."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.retrieval import evaluate, search
from unseen.retrieval.engine import nearest
from unseen.retrieval.engine.vectors import NotFiniteError


def loop_neighbours(queries, gallery, own, similarity):
    """Per query the gallery positions, best first: float64 rounded to float32, ties to the lower position."""
    rankings = []
    for i, q in enumerate(np.asarray(queries, np.float64)):
        scores = []
        for g in np.asarray(gallery, np.float64):
            value = -np.sqrt(((q - g) ** 2).sum()) if similarity == "euclidean" else (q * g).sum()
            if similarity == "cosine":
                lengths = np.sqrt((q * q).sum()) * np.sqrt((g * g).sum())
                value = value / lengths if lengths > 0 else 0.0
            scores.append(np.float32(value))
        rankings.append(
            [j for j in sorted(range(len(gallery)), key=lambda j: (-scores[j], j)) if j != own[i]]
        )
    return rankings


def loop_metrics(rankings, labels, gallery_labels, own, ks):
    rows = []
    for i, ranking in enumerate(rankings):
        right = [int(gallery_labels[j] == labels[i]) for j in ranking]
        relevant = sum(right)
        if relevant == 0:
            continue
        row = {f"recall_at_{k}": float(any(right[:k])) for k in ks}
        row |= {f"precision_at_{k}": sum(right[:k]) / k for k in ks}
        row["r_precision"] = sum(right[:relevant]) / relevant
        row["map_at_r"] = sum(right[n] * sum(right[: n + 1]) / (n + 1) for n in range(relevant)) / relevant
        votes = [gallery_labels[j] for j in ranking[:3]]
        row["knn_accuracy_3"] = float(max(votes, key=votes.count) == labels[i])
        rows.append(row)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@st.composite
def gallery_inputs(draw):
    """Small vectors with many ties and duplicates, zero vectors, and classes of every size."""
    count = draw(st.integers(2, 40))
    width = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["gaussian", "grid", "equal", "duplicates"]))
    vectors = rng.normal(size=(count, width))
    if kind == "grid":
        vectors = rng.integers(-1, 2, size=(count, width))
    elif kind == "equal":
        vectors = np.ones((count, width)) * rng.normal()
    elif kind == "duplicates":
        vectors = vectors[rng.integers(0, max(1, count // 3), size=count)]
    labels = rng.integers(0, draw(st.integers(1, count)), size=count) + 2**40
    return vectors.astype(np.float32), labels


@settings(max_examples=60, deadline=None)
@given(gallery_inputs(), st.sampled_from(["cosine", "euclidean", "dot"]), st.sampled_from([1, 2**30]))
def test_evaluate_equals_the_loops(inputs, similarity, memory_budget):
    vectors, labels = inputs
    if len(np.unique(labels)) == len(labels):
        with pytest.raises(ValueError, match="None of the"):
            evaluate(vectors, labels)
        return
    own = np.arange(len(vectors))
    rankings = loop_neighbours(vectors, vectors, own, similarity)
    result = evaluate(
        vectors, labels, similarity=similarity, precision_at=(1, 2, 4, 8), memory_budget=memory_budget
    )
    k = min(result.neighbours.ids.shape[1], len(vectors) - 1)
    assert result.neighbours.ids[:, :k].tolist() == [ranking[:k] for ranking in rankings]
    assert (result.neighbours.ids[:, k:] == -1).all()
    assert result.metrics == pytest.approx(
        loop_metrics(rankings, labels, labels, own, (1, 2, 4, 8)), abs=1e-12
    )


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "dot"])
def test_queries_against_a_separate_gallery(similarity):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 5)), rng.normal(size=(50, 5))
    labels, gallery_labels = rng.integers(0, 6, 30), rng.integers(0, 6, 50)
    queries, gallery = queries.astype(np.float32), gallery.astype(np.float32)
    rankings = loop_neighbours(queries, gallery, [-1] * 30, similarity)
    result = evaluate(
        torch.tensor(queries),
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        similarity=similarity,
        precision_at=(1, 2, 4, 8),
    )
    k = result.neighbours.ids.shape[1]
    assert result.neighbours.ids.tolist() == [ranking[:k] for ranking in rankings]
    expected = loop_metrics(rankings, labels, gallery_labels, [-1] * 30, (1, 2, 4, 8))
    assert result.metrics == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def uneven():
    """A few large classes and many small ones, with duplicates."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(3).repeat_interleave(120), torch.arange(3, 43).repeat_interleave(5)])
    vectors = torch.randn(43, 16, generator=generator)[labels]
    vectors = vectors + torch.randn(len(labels), 16, generator=generator)
    vectors[100:140] = vectors[100]
    shuffled = torch.randperm(len(labels), generator=generator)
    return vectors[shuffled], labels[shuffled]


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_parts_give_what_one_search_gives(uneven, monkeypatch, similarity, separate, precision):
    vectors, labels = uneven
    arguments = {"similarity": similarity, "precision": precision, "recall_at": (1, 3)}
    arguments["ids"] = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)) * 3
    if separate:
        arguments |= {"gallery": vectors[:400], "gallery_labels": labels[:400]}
        arguments["gallery_ids"] = arguments["ids"][:400]
    searched = []
    keys_of = nearest.nearest_keys
    monkeypatch.setattr(
        nearest,
        "nearest_keys",
        lambda part, depth, *rest: searched.append(int(depth.max())) or keys_of(part, depth, *rest),
    )
    whole = evaluate(vectors, labels, **arguments)
    assert searched == [int(whole.relevant.max())]
    for budget in (1, 2**20):
        searched.clear()
        parts = evaluate(vectors, labels, memory_budget=budget, **arguments)
        assert len(searched) > 1
        assert parts.metrics == pytest.approx(whole.metrics, abs=1e-14)
        assert torch.equal(parts.hits, whole.hits)
        assert torch.equal(parts.neighbours.ids, whole.neighbours.ids)
        assert torch.equal(parts.neighbours.positions, whole.neighbours.positions)
        assert torch.equal(parts.neighbours.similarities, whole.neighbours.similarities)
        for name, values in whole.per_query.items():
            torch.testing.assert_close(parts.per_query[name], values, rtol=1e-14, atol=0, equal_nan=True)


def test_small_classes_are_searched_together_although_a_large_one_does_not_fit(monkeypatch):
    labels = torch.cat([torch.zeros(400, dtype=torch.int64), torch.arange(1, 401).repeat_interleave(4)])
    vectors = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    searched = []
    keys_of = nearest.nearest_keys

    def watched(part, depth, *rest):
        searched.append((len(part.queries), part.symmetric, int(depth.max())))
        return keys_of(part, depth, *rest)

    monkeypatch.setattr(nearest, "nearest_keys", watched)
    evaluate(vectors, labels, memory_budget=2**21)
    assert searched[0] == (len(labels), True, 10)
    assert all(k == 399 and not symmetric for _, symmetric, k in searched[1:])
    assert sum(count for count, _, _ in searched[1:]) == 400


def test_the_kept_neighbours_are_what_metrics_and_pictures_want():
    vectors, labels = torch.randn(60, 4), torch.arange(60) % 2
    assert evaluate(vectors, labels).hits.shape == (60, 10)
    assert evaluate(vectors, labels, neighbours=3).hits.shape == (60, 8)  # recall_at_8
    result = evaluate(vectors, labels, neighbours=20, precision_at=(5,))
    assert result.neighbours.ids.shape == result.hits.shape == (60, 20)
    assert evaluate(vectors, labels, neighbours=100).hits.shape == (60, 59)  # all that there are


PEAK = """
import resource, sys, torch
from unseen.retrieval import evaluate, search
classes, images, width, budget, precision = *map(int, sys.argv[1:5]), sys.argv[5]
labels = torch.arange(classes).repeat_interleave(images)
generator = torch.Generator().manual_seed(0)
vectors = torch.randn(classes, width, generator=generator)[labels]
vectors += torch.randn(len(labels), width, generator=generator)
for warm in ("float32", "bfloat16", "int8"):  # imports, thread pools, compiled loops
    search(vectors[:600], k=8, precision=warm)
evaluate(vectors[:600], torch.arange(600) // 2)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
result = evaluate(vectors, labels, memory_budget=budget, precision=precision)
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("classes", "images", "precision"),
    [(10, 1500, "auto"), (10, 1500, "float64"), (10, 1500, "int8"), (3000, 5, "int8"), (3000, 5, "float64")],
)
def test_the_budget_bounds_what_is_held_however_large_the_classes(classes, images, precision):
    budget, count = 64 * 2**20, classes * images
    command = [sys.executable, "-c", PEAK, str(classes), str(images), "64", str(budget), precision]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    results = count * (10 * 21 + 400)
    allocator = 16 * 2**20  # what it keeps of freed blocks, and threads their stacks
    assert int(outcome.stdout) < budget + results + allocator


def test_a_duplicate_of_the_query_is_a_neighbour_but_the_query_is_not():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    result = evaluate(vectors, [0, 0, 1, 1], recall_at=(1,))
    assert result.neighbours.ids[:, 0].tolist() == [1, 0, 3, 2]
    assert result.metrics["recall_at_1"] == 1.0


def test_ids_exclude_the_query_and_break_ties():
    vectors = torch.ones(4, 2)
    result = evaluate(vectors, [0, 0, 0, 0], ids=[9, 7, 8, 6], recall_at=(1,))
    assert result.neighbours.ids.tolist() == [[6, 7, 8], [6, 8, 9], [6, 7, 9], [7, 8, 9]]
    assert result.neighbours.positions.tolist() == [[3, 1, 2], [3, 2, 0], [3, 1, 0], [1, 2, 0]]


def test_ids_of_numpy_may_be_a_view_backwards():
    ids = np.arange(4)[::-1]
    assert evaluate(torch.ones(4, 2), [0] * 4, ids=ids).ids.tolist() == [3, 2, 1, 0]
    assert search(torch.eye(3), torch.eye(3), k=1, gallery_ids=ids[:3]).ids.tolist() == [[3], [2], [1]]


@pytest.mark.parametrize("gallery", [{}, {"gallery": torch.eye(3), "gallery_labels": [0, 0, 0]}])
@pytest.mark.parametrize(
    ("ids", "message"),
    [([5, 6], "3 integers, one per vector; got 2"), ([5, 6, 5], "distinct; 5"), (list("abc"), "one integer")],
)
def test_ids_that_name_no_rows_are_refused(gallery, ids, message):
    for function in (search, evaluate):
        arguments = {"k": 1} if function is search else {"labels": [0, 0, 0]}
        given = {name: value for name, value in gallery.items() if function is evaluate or name == "gallery"}
        with pytest.raises(ValueError, match=message):
            function(torch.eye(3), ids=ids, **arguments, **given)


def test_too_few_ids_hide_no_embeddings_that_are_not_finite():
    with pytest.raises(NotFiniteError, match=r"ids \[2\]"):
        evaluate(torch.tensor([[1.0], [2.0], [torch.nan]]), [0, 0, 0], ids=[7])


def test_a_gallery_that_holds_the_query_by_id():
    vectors = torch.eye(3)
    arguments = {"gallery": vectors, "gallery_labels": [0, 0, 0], "recall_at": (1,)}
    assert evaluate(vectors, [0, 0, 0], **arguments).neighbours.ids[:, 0].tolist() == [0, 1, 2]
    excluded = evaluate(vectors, [0, 0, 0], ids=[5, 6, 7], gallery_ids=[5, 6, 7], **arguments)
    assert excluded.neighbours.ids.tolist() == [[6, 7, -1], [5, 7, -1], [5, 6, -1]]
    assert excluded.relevant.tolist() == [2, 2, 2]


def test_labels_beyond_two_to_the_24_do_not_merge():
    big = 2**24
    result = evaluate(torch.eye(4), [big, big, big + 1, big + 1], recall_at=(1,))
    assert result.relevant.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="integers"):
        evaluate(torch.eye(4), torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_an_id_of_two_images_is_refused():
    ids = torch.arange(4)
    with pytest.raises(ValueError, match="The id 1 has label 1 as a query and 0 in the gallery"):
        evaluate(
            torch.eye(4),
            [0, 1, 2, 3],
            gallery=torch.eye(4),
            gallery_labels=[0, 0, 0, 2],
            ids=ids,
            gallery_ids=ids,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_default_dtype_of_the_process_changes_nothing(dtype):
    vectors, labels = np.random.default_rng(0).normal(size=(40, 8)), np.arange(40) % 5
    wanted = evaluate(vectors, labels)
    torch.set_default_dtype(dtype)
    try:
        found = evaluate(vectors[::1], labels)
        backwards = evaluate(vectors[::-1], labels[::-1], recall_at=(np.int64(1),))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.metrics == wanted.metrics
    assert backwards.metrics["recall_at_1"] == wanted.metrics["recall_at_1"]


def test_labels_that_are_names_and_ranks_below_one_are_refused():
    with pytest.raises(ValueError, match=r"Number them: numpy.unique\(labels, return_inverse=True\)"):
        evaluate(torch.eye(4), ["a", "a", "b", "b"])
    for ranks in ((0,), (1.5,), 3):
        with pytest.raises(
            ValueError, match=r"recall_at=.* wanted a sequence of whole numbers from 1 upwards"
        ):
            evaluate(torch.eye(4), [0, 0, 1, 1], recall_at=ranks)


def test_queries_without_relevant_items_are_skipped_or_counted_as_misses():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    skipped = evaluate(vectors, [0, 0, 5], recall_at=(1,))
    assert skipped.metrics["recall_at_1"] == 1.0
    assert skipped.per_query["recall_at_1"].isnan().tolist() == [False, False, True]
    assert skipped.classes.tolist() == [0, 5]
    assert skipped.per_class["map_at_r"][0] == 1.0
    assert skipped.per_class["map_at_r"][1].isnan()
    counted = evaluate(vectors, [0, 0, 5], recall_at=(1,), without_relevant="zero")
    assert counted.metrics["map_at_r"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_embeddings_that_are_not_finite_are_refused_with_their_ids(bad):
    vectors = torch.rand(5, 3)
    vectors[3, 1] = bad
    with pytest.raises(ValueError, match=r"ids \[43\]"):
        evaluate(vectors, [0, 0, 1, 1, 1], ids=[40, 41, 42, 43, 44])


def test_large_finite_values_are_not_mistaken_for_infinite_ones():
    vectors = torch.tensor([[3e38, 3e38], [3e38, 3e38], [3e38, -3e38]])
    assert evaluate(vectors, [0, 0, 0], recall_at=(1,)).neighbours.ids[:, 0].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="overflow"):
        evaluate(vectors, [0, 0, 0], similarity="dot")


def test_a_word_that_means_neither_skip_nor_zero_is_refused():
    with pytest.raises(ValueError, match="without_relevant='drop': wanted 'skip' or 'zero'"):
        evaluate(np.eye(3), [0, 0, 1], without_relevant="drop")
