"""Cross-batch memory: what it holds, what it is used for, what it leaves out."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from unseen.losses import CrossBatchMemory, not_remembering, remembering_afterwards


def some_batch(ids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(ids)
    return normalize(torch.randn(len(ids), 16, generator=generator)), ids // 10, ids


def test_it_holds_the_latest_newest_first():
    memory = CrossBatchMemory(size=5, embedding_size=1, warmup=0)
    for ids in ([1, 2], [3, 4], [5, 6]):
        values = torch.tensor(ids)
        memory.add(values[:, None].float(), values % 2, values)
    assert memory.ids.tolist() == [5, 6, 3, 4, 1]
    assert memory.embeddings.flatten().tolist() == [5, 6, 3, 4, 1]
    assert memory.labels.tolist() == [1, 0, 1, 0, 1]
    assert len(memory) == 5


def test_empty_places_are_no_references():
    memory = CrossBatchMemory(size=100, embedding_size=16, warmup=0)
    memory.add(*some_batch([1, 2]))
    references = memory.behind(*some_batch([3], seed=1))
    assert references.ids.tolist() == [3, 1, 2]
    assert references.embeddings.shape == (3, 16)


def test_a_batch_larger_than_the_memory_fits():
    memory = CrossBatchMemory(size=2, embedding_size=16, warmup=0)
    memory.add(*some_batch([1, 2, 3]))
    assert memory.ids.tolist() == [1, 2]


def test_contrastive_with_memory_against_loops(build_loss):
    """Anchors of the second batch against both batches, without whatever shows the anchor's own image."""
    loss = build_loss("contrastive", "memory=cross_batch", "memory.warmup=0")
    before, old_labels, old_ids = some_batch([0, 1, 10, 11, 20], seed=1)
    now, labels, ids = some_batch([0, 2, 11, 12], seed=2)
    loss(before, old_labels, old_ids)
    got = loss(now.requires_grad_(), labels, ids)

    every = np.concatenate([now.detach().numpy(), before.numpy()])
    every_id = np.concatenate([ids, old_ids])
    own, other = [], []
    for i in range(4):
        for j in range(9):
            distance = float(np.linalg.norm(every[i] - every[j]))
            if ids[i] // 10 != every_id[j] // 10:
                other.append(max(0.0, 1 - distance))
            elif ids[i] != every_id[j]:
                own.append(distance)
    expected = np.mean(own) + np.mean([value for value in other if value > 0] or [0])
    assert got.item() == pytest.approx(expected, rel=1e-4)
    got.backward()
    assert torch.isfinite(now.grad).all()
    assert not before.requires_grad


@pytest.mark.parametrize("name", ["triplet", "margin", "lifted_structure", "angular", "circle", "supcon"])
def test_only_the_memory_can_give_a_positive(name, build_loss):
    """Every class of a batch is there once: alone it is worth nothing; after another batch it is."""
    loss = build_loss(name, "memory=cross_batch", "memory.warmup=0", "miner=none")
    assert loss(*some_batch([0, 10, 20], seed=1)).item() == 0
    assert loss(*some_batch([1, 11, 21], seed=2)).item() > 0


def test_evaluation_is_not_remembered(build_loss):
    loss = build_loss("contrastive", "memory=cross_batch", "memory.warmup=0").eval()
    loss(*some_batch([0, 1, 10]))
    assert len(loss.memory) == 0


def test_it_is_saved_and_restored(build_loss):
    first, second = (build_loss("contrastive", "memory=cross_batch", "memory.warmup=0") for _ in range(2))
    first(*some_batch([0, 1, 10, 11], seed=1))
    second.load_state_dict(first.state_dict())
    batch = some_batch([2, 3, 12, 13], seed=2)
    assert first(*batch).item() == second(*batch).item()
    assert second.memory.ids[:8].tolist() == [2, 3, 12, 13, 0, 1, 10, 11]


@pytest.mark.parametrize("name", ["contrastive", "margin", "multi_similarity", "circle"])
def test_during_the_warm_up_it_fills_and_is_not_used(name, build_loss):
    plain = build_loss(name)
    loss = build_loss(name, "memory=cross_batch", "memory.warmup=2")
    always = build_loss(name, "memory=cross_batch", "memory.warmup=0")
    values = []
    for step in range(4):
        batch = some_batch([10 * c + 2 * step + k for c in range(3) for k in range(2)], seed=step)
        values.append([function(*batch).item() for function in (plain, loss, always)])
        assert len(loss.memory) == 6 * (step + 1)
    assert [row[1] for row in values[:2]] == [row[0] for row in values[:2]]
    # What it holds afterwards is what it would hold without a warm-up.
    assert [row[1] for row in values[2:]] == [row[2] for row in values[2:]]
    assert all(row[1] != row[0] for row in values[2:])


def test_the_warm_up_goes_on_where_a_checkpoint_left_it(build_loss):
    first, second = (build_loss("contrastive", "memory=cross_batch", "memory.warmup=2") for _ in range(2))
    first(*some_batch([0, 1, 10, 11], seed=1))
    second.load_state_dict(first.state_dict())
    assert not second.memory.is_warm
    second(*some_batch([2, 3, 12, 13], seed=2))
    assert second.memory.is_warm


def test_evaluation_is_no_step_of_the_warm_up(build_loss):
    loss = build_loss("contrastive", "memory=cross_batch", "memory.warmup=1").eval()
    loss(*some_batch([0, 1, 10]))
    assert not loss.memory.is_warm


def test_a_negative_warm_up_is_refused(build_loss):
    with pytest.raises(ValueError, match="warmup=-1"):
        build_loss("contrastive", "memory=cross_batch", "memory.warmup=-1")


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_step_that_takes_the_loss_twice_meets_the_same_memory_both_times(build_loss, warmup):
    loss = build_loss("contrastive", "memory=cross_batch", f"memory.warmup={warmup}")
    batch = some_batch([0, 1, 10, 11], seed=1)
    with remembering_afterwards(loss):
        first = loss(*batch)
        with not_remembering(loss):
            assert loss(*batch) == first
        assert len(loss.memory) == 0
    assert loss.memory.ids[:4].tolist() == [0, 1, 10, 11], "the batch, once"
    assert len(loss.memory) == 4


def test_a_step_that_fails_is_not_remembered(build_loss):
    loss = build_loss("contrastive", "memory=cross_batch", "memory.warmup=0")

    def step():
        with remembering_afterwards(loss):
            loss(*some_batch([0, 1, 10, 11], seed=1))
            raise KeyError("elsewhere")

    with pytest.raises(KeyError):
        step()
    assert len(loss.memory) == 0
    loss(*some_batch([2, 3, 12, 13], seed=2))
    assert len(loss.memory) == 4
