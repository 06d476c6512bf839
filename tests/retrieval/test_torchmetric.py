"""`RetrievalMetric` gives what `evaluate` gives: in batches, of a gallery, on any number of ranks."""

import functools

import pytest
import torch

from unseen.retrieval import RetrievalMetric, evaluate


def test_batches_give_what_the_whole_gives():
    vectors, labels = torch.randn(50, 6), torch.arange(50) % 7
    metric = RetrievalMetric(recall_at=(1, 2), similarity="euclidean")
    for rows in torch.randperm(50).split(8):
        metric.update(vectors[rows], labels[rows], rows)
    expected = evaluate(vectors, labels, recall_at=(1, 2), similarity="euclidean").metrics
    assert {name: value.item() for name, value in metric.compute().items()} == expected


def test_a_separate_gallery():
    vectors, labels = torch.randn(50, 6), torch.arange(50) % 7
    metric = RetrievalMetric()
    metric.update(vectors[:20], labels[:20], torch.arange(20))
    for rows in torch.arange(20, 50).split(7):
        metric.update(vectors[rows], labels[rows], rows, gallery=True)
    expected = evaluate(vectors[:20], labels[:20], gallery=vectors[20:], gallery_labels=labels[20:])
    assert metric.compute()["map_at_r"].item() == pytest.approx(expected.metrics["map_at_r"], abs=1e-12)


def test_reset_forgets():
    metric = RetrievalMetric()
    metric.update(torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 4, 5]), torch.arange(6))
    metric.reset()
    metric.update(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    assert metric.compute()["recall_at_1"] == 1


def embedded_rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(97) % 13
    vectors = torch.randn(13, 8, generator=generator)[labels] + torch.randn(97, 8, generator=generator)
    vectors[40:44] = vectors[40]
    return vectors, labels


def measure_part(rank, world, separate):
    """Every world-th row, the first rows again so that parts are equal: what a distributed sampler gives."""
    vectors, labels = embedded_rows()
    rows = torch.arange(97)
    rows = torch.cat([rows, rows[: -97 % world]])[rank::world]
    metric = RetrievalMetric(recall_at=(1, 5))
    for batch in rows.split(10):
        metric.update(vectors[batch], labels[batch], batch)
        if separate:
            metric.update(vectors[batch], labels[batch], batch + 1000, gallery=True)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_any_number_of_ranks_with_padded_rows_gives_the_result_of_one_process(world, separate, on_ranks):
    vectors, labels = embedded_rows()
    arguments = {"gallery": vectors, "gallery_labels": labels} if separate else {}
    single = evaluate(vectors, labels, recall_at=(1, 5), **arguments).metrics
    assert on_ranks(world, functools.partial(measure_part, separate=separate)) == [single] * world


def measure_unequal(rank, world, separate):
    """Rank 1 has nothing of the queries, or of a separate gallery."""
    vectors, labels = embedded_rows()
    metric = RetrievalMetric(recall_at=(1, 5))
    for rows in torch.arange(97).split(10) if rank != 1 or separate else ():
        metric.update(vectors[rows], labels[rows], rows)
    if separate and rank != 1:
        metric.update(vectors, labels, torch.arange(97) + 1000, gallery=True)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert metric.query_ids == [] or rank != 1 or separate, "its own state is as it was"
    return found


@pytest.mark.parametrize("separate", [False, True])
def test_a_rank_without_a_batch_takes_part(separate, on_ranks):
    vectors, labels = embedded_rows()
    arguments = {"gallery": vectors, "gallery_labels": labels} if separate else {}
    single = evaluate(vectors, labels, recall_at=(1, 5), **arguments).metrics
    assert on_ranks(3, functools.partial(measure_unequal, separate=separate)) == [single] * 3
