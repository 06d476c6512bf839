"""What `auto` picks, and that the pick never shows in the result."""

import pytest
import torch

from unseen.retrieval import search
from unseen.retrieval.engine import choose
from unseen.retrieval.engine.inputs import check_inputs


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(choose, "SMALL", 0)


def speeds(monkeypatch, **seconds):
    monkeypatch.setattr(
        choose, "seconds_per_product", lambda dtype: seconds[str(dtype).removeprefix("torch.")]
    )


def spread(count=3000, width=16):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def chosen(vectors):
    inputs = check_inputs(vectors, None, "cosine", None, None)
    return choose.choose_precision(inputs, torch.full((len(vectors),), 5), 2**30)


@pytest.mark.parametrize("fastest", ["float64", "float32", "bfloat16", "int8"])
def test_the_fastest_products_win_where_neighbours_are_well_apart(monkeypatch, fastest):
    names = ("float64", "float32", "bfloat16", "int8")
    speeds(monkeypatch, **{name: 1e-9 if name == fastest else 1.0 for name in names})
    assert chosen(spread()) == fastest


def test_a_product_that_this_machine_lacks_is_never_used(monkeypatch):
    speeds(monkeypatch, float64=2.0, float32=1.0, bfloat16=float("inf"), int8=float("inf"))
    assert chosen(spread()) == "float32"


def test_collapsed_embeddings_are_not_rounded(monkeypatch):
    speeds(monkeypatch, float64=2.0, float32=1e-9, bfloat16=1e-10, int8=1e-11)
    collapsed = torch.ones(1, 16) + 1e-3 * spread()
    assert chosen(collapsed) in ("float32", "float64")


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "dot"])
def test_auto_finds_what_float32_finds(similarity):
    vectors = spread()
    expected = search(vectors, k=5, similarity=similarity, precision="float32")
    found = search(vectors, k=5, similarity=similarity)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.similarities, expected.similarities)


def test_what_a_query_meets_is_everything_once_and_it_knows_what_it_met_before():
    gaps = torch.randn(5, 1500, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    gaps = gaps[:, torch.randperm(1500, generator=torch.Generator().manual_seed(1))]
    depth = torch.tensor([1, 10, 64, 65, 700])
    far, *near = choose._meetings(gaps, depth)
    for row, wanted in enumerate(depth.tolist()):
        nearest = gaps[row].sort().values
        assert torch.equal(far[0][row].sort().values[: 1500 - 1024], nearest[1024:])
        assert torch.isinf(far[0][row]).sum() == 1024
        assert far[1][row] == 0
        met = torch.empty(0)
        for piece, known in reversed(near):
            assert known[row] == (met.sort().values[wanted - 1] if len(met) >= wanted else torch.inf)
            met = torch.cat([met, piece[row]])
        assert torch.equal(met.sort().values, nearest[:1024])
