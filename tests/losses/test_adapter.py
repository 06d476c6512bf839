"""Promises of the adapter for every loss: full precision, an attached zero, miners that repeat themselves."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

CHOSEN = sorted(path.stem for path in Path(__file__).parents[2].joinpath("conf/loss").glob("[!_]*.yaml"))
OF_PROXIES = {
    "arcface",
    "cosface",
    "norm_softmax",
    "proxy_anchor",
    "proxy_nca",
    "proxy_nca_pp",
    "soft_triple",
}
OF_PAIRS = sorted(set(CHOSEN) - OF_PROXIES)


def random_batch(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        normalize(torch.randn(count, 16, generator=generator)),
        torch.arange(count) // 4,
        torch.arange(count),
    )


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3, 4, 5], [2, 2, 2, 2, 2, 2], [3]], ids=["no positive", "no negative", "alone"]
)
def test_a_batch_without_pairs_is_harmless(name, labels, build_loss):
    embeddings, _, ids = random_batch(len(labels))
    embeddings.requires_grad_()
    loss = build_loss(name)(embeddings, torch.tensor(labels), ids)
    assert loss.shape == ()
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", ["triplet", "margin", "lifted_structure", "circle", "supcon"])
def test_triplets_without_a_negative_are_worth_nothing(name, build_loss):
    embeddings, _, ids = random_batch(6)
    embeddings.requires_grad_()
    loss = build_loss(name)(embeddings, torch.zeros(6, dtype=torch.int64), ids)
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad.abs().sum() == 0


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(name, dtype, build_loss):
    embeddings, labels, ids = random_batch()
    half = embeddings.to(dtype)
    loss = build_loss(name)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(half.requires_grad_(), labels, ids)
    got.backward()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss(half.detach().float(), labels, ids).item(), rel=1e-6)
    assert half.grad.dtype == dtype
    assert torch.isfinite(half.grad).all()


def test_random_miners_draw_by_the_batch_and_leave_the_generator_alone(build_loss):
    embeddings, labels, ids = random_batch()
    loss = build_loss("margin")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = loss(embeddings, labels, ids)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert loss(embeddings, labels, ids) == first
    assert loss(embeddings, labels, ids + 1) != first
