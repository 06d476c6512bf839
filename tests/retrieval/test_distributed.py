"""One, two and three processes, unequal parts and repeated rows: always the numbers of one process."""

import functools
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from unseen.retrieval import RetrievalMetric, evaluate
from unseen.retrieval.engine.distributed import gather


def embedded_rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(97) % 13
    vectors = torch.randn(13, 8, generator=generator)[labels] + torch.randn(97, 8, generator=generator)
    vectors[40:44] = vectors[40]
    return vectors, labels, torch.arange(97)


def in_process(rank, world, port, work, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(world, work, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        in_process, (world, port, work, str(folder)), nprocs=world, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def padded_part(rank, world):
    """What a distributed sampler gives: every world-th row, the first rows again so that parts are equal."""
    rows = torch.arange(97)
    rows = torch.cat([rows, rows[: -97 % world]])
    return rows[rank::world]


def evaluate_part(rank, world, separate):
    vectors, labels, ids = embedded_rows()
    rows = padded_part(rank, world)
    arguments = {"ids": ids[rows], "distributed": True, "mrr": True}
    if separate:
        arguments |= {"gallery": vectors[rows], "gallery_labels": labels[rows]}
        arguments |= {"gallery_ids": ids[rows] + 1000}
    result = evaluate(vectors[rows], labels[rows], **arguments)
    return result.metrics, result.neighbours.ids, result.neighbours.similarities, result.ids


def measure_part(rank, world):
    vectors, labels, ids = embedded_rows()
    metric = RetrievalMetric(recall_at=(1, 5))
    for rows in padded_part(rank, world).split(10):
        metric.update(vectors[rows], labels[rows], ids[rows])
    return {name: value.item() for name, value in metric.compute().items()}


def gather_part(rank, world):
    return gather(torch.full((rank, 2), rank, dtype=torch.int64))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_any_number_of_ranks_gives_the_result_of_one_process(world, separate, tmp_path):
    vectors, labels, ids = embedded_rows()
    arguments = {"gallery": vectors, "gallery_labels": labels, "gallery_ids": ids + 1000} if separate else {}
    single = evaluate(vectors, labels, ids=ids, mrr=True, **arguments)
    for metrics, neighbours, similarities, result_ids in on_ranks(
        world, functools.partial(evaluate_part, separate=separate), tmp_path
    ):
        assert metrics == single.metrics
        assert torch.equal(neighbours, single.neighbours.ids)
        assert torch.equal(similarities, single.neighbours.similarities)
        assert torch.equal(result_ids, ids)


@pytest.mark.parametrize("world", [1, 3])
def test_the_metric_counts_padded_rows_once(world, tmp_path):
    vectors, labels, _ = embedded_rows()
    single = evaluate(vectors, labels, recall_at=(1, 5)).metrics
    assert on_ranks(world, measure_part, tmp_path) == [single] * world


def test_ranks_may_hold_nothing(tmp_path):
    expected = torch.tensor([[1, 1], [2, 2], [2, 2]])
    assert all(torch.equal(found, expected) for found in on_ranks(3, gather_part, tmp_path))
