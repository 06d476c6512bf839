"""`search` against a float64 brute force, in every precision, cut and degenerate geometry.

Similarities are rounded to float32 before they are ordered, in the oracle as in the product: pairs that
float32 cannot separate are ties, and ties go to the lower id. The order is then unique and compared exactly.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.retrieval import evaluate, search
from unseen.retrieval.engine.rounding import multiply
from unseen.retrieval.engine.vectors import has_float64


def float64_neighbours(queries, gallery, own, k, similarity):
    q, g = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    scores = q @ g.T
    if similarity == "euclidean":
        scores = -np.sqrt(((q[:, None] - g[None]) ** 2).sum(axis=2))
    if similarity == "cosine":
        lengths = np.sqrt((q * q).sum(axis=1))[:, None] * np.sqrt((g * g).sum(axis=1))[None]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    scores = scores.astype(np.float32)
    ids = np.full((len(q), k), -1)
    for row, score in enumerate(scores):
        order = np.argsort(-score, kind="stable")
        order = order[order != own[row]][:k]
        ids[row, : len(order)] = order
    return ids, scores


def geometry(kind, count, width, rng):
    if kind == "grid":
        return rng.integers(-1, 2, (count, width)).astype(np.float32)
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    if kind == "duplicates":
        return vectors[rng.integers(0, max(1, count // 4), count)]
    if kind == "equal":
        return np.broadcast_to(vectors[:1], vectors.shape).copy()
    if kind == "near":  # float32 products cannot order these
        return (vectors[:1] + 1e-6 * vectors).astype(np.float32)
    if kind == "opposite":  # k-th neighbours of negative similarity
        return (0.1 * vectors + np.where(np.arange(count)[:, None] % 8 == 0, 1, -1)).astype(np.float32)
    if kind == "scales":
        return (vectors * 10.0 ** rng.uniform(-8, 8, (count, 1))).astype(np.float32)
    if kind == "zeros":
        return vectors * (rng.random((count, 1)) > 0.3)
    return vectors


KINDS = ["gaussian", "grid", "duplicates", "equal", "near", "opposite", "scales", "zeros"]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    similarity=st.sampled_from(["cosine", "euclidean", "dot"]),
    precision=st.sampled_from(["float64", "float32", "bfloat16", "int8"]),
    count=st.integers(2, 200),
    width=st.integers(1, 20),
    k=st.integers(1, 30),
    budget=st.sampled_from([1, 64 * 64**2, 2**30]),
    separate=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_search_equals_float64(kind, similarity, precision, count, width, k, budget, separate, seed):
    rng = np.random.default_rng(seed)
    vectors = geometry(kind, count, width, rng)
    arguments = {"k": k, "similarity": similarity, "precision": precision, "memory_budget": budget}
    if separate:
        gallery, own = geometry(kind, 3 * count, width, rng), np.full(count, -1)
        found = search(vectors, gallery, **arguments)
    else:
        gallery, own = vectors, np.arange(count)
        found = search(vectors, **arguments)
    ids, scores = float64_neighbours(vectors, gallery, own, k, similarity)
    if kind == "scales":  # rounding to float32 may fall either way where float64 sums differ in the last bit
        taken = np.take_along_axis(scores, found.ids.clamp(min=0).numpy(), axis=1)
        wanted = np.take_along_axis(scores, np.maximum(ids, 0), axis=1)
        np.testing.assert_allclose(taken, wanted, rtol=3e-7)
        return
    assert found.ids.tolist() == ids.tolist()
    present = ids >= 0
    wanted = np.take_along_axis(scores, np.maximum(ids, 0), axis=1)[present]
    np.testing.assert_allclose(found.similarities.numpy()[present], wanted, rtol=2e-7, atol=1e-37)
    assert (found.similarities.numpy()[~present] == -np.inf).all()


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("separate", [False, True])
def test_many_tiles(precision, separate):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(60, 32))
    vectors = (centres[rng.integers(0, 60, 1500)] + 0.5 * rng.normal(size=(1500, 32))).astype(np.float32)
    vectors[700:720] = vectors[700]
    budget = 64 * 128**2  # tiles of 128
    if separate:
        ids = np.arange(400) + 1000
        found = search(
            vectors[1000:1400],
            vectors,
            k=7,
            ids=ids,
            gallery_ids=np.arange(1500),
            precision=precision,
            memory_budget=budget,
        )
        expected, _ = float64_neighbours(vectors[1000:1400], vectors, ids, 7, "cosine")
    else:
        # Candidates of 1,500 queries do not fit this budget at once: the symmetric cut needs more.
        found = search(vectors, k=7, precision=precision, memory_budget=4 * 2**20)
        expected, _ = float64_neighbours(vectors, vectors, np.arange(1500), 7, "cosine")
    assert found.ids.tolist() == expected.tolist()


def test_numpy_and_torch_in_any_float_type_agree():
    vectors = torch.randn(50, 8).half()
    expected = search(vectors.float(), k=3).ids
    for same in (vectors, vectors.double(), vectors.numpy(), vectors.double().numpy()):
        assert torch.equal(search(same, k=3).ids, expected)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_looser_products_elsewhere_do_not_loosen_these(precision):
    vectors = geometry("near", 600, 64, np.random.default_rng(0))
    expected, _ = float64_neighbours(vectors, vectors, np.arange(600), 5, "cosine")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = search(vectors, k=5, precision=precision)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.ids.tolist() == expected.tolist()


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_looser_products_set_in_the_newer_way_do_not_loosen_these_either():
    vectors = geometry("near", 600, 64, np.random.default_rng(0))
    expected, _ = float64_neighbours(vectors, vectors, np.arange(600), 5, "cosine")
    product = torch.backends.mkldnn.matmul
    before = product.fp32_precision
    product.fp32_precision = "bf16"
    try:
        found = search(vectors, k=5, precision="float32")
        assert product.fp32_precision == "bf16"
    finally:
        product.fp32_precision = before
    assert found.ids.tolist() == expected.tolist()


def test_inputs_are_left_alone():
    vectors = torch.randn(50, 8)
    before = vectors.clone()
    search(vectors, k=3)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.ones(3), "k": 1}, r"shape \(N, d\)"),
        ({"embeddings": torch.ones(3, 2), "k": 0}, "k=0: wanted a whole number"),
        ({"embeddings": torch.ones(3, 2), "k": 2.0}, r"k=2\.0: wanted a whole number"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "precision": "half"}, "precision='half': wanted one of"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "similarity": "l2"}, "similarity must be one of"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "ids": [1, 2, 1]}, "distinct; 1"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "ids": [1, 2]}, "must hold 3 integers"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "ids": [1.0, 2.0, 3.0]}, "one integer per vector"),
        ({"embeddings": torch.ones(3, 2), "k": 1, "gallery_ids": [1, 2, 3]}, "without a gallery"),
        ({"embeddings": torch.ones(3, 2), "gallery": torch.ones(3, 4), "k": 1}, "agree in width"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_int8_products_are_exact_at_the_extremes():
    values = torch.full((64, 512), 127, dtype=torch.int8)
    values[::2] = -127
    product = multiply(values, values, torch.empty((64, 64), dtype=torch.int32))
    assert product[0, 0] == 127 * 127 * 512
    assert product[0, 1] == -127 * 127 * 512


@pytest.mark.parametrize("width", [1, 2, 3, 17])
def test_int8_products_are_those_of_integers_in_any_width(width):
    values = torch.randint(-127, 128, (64, width), dtype=torch.int8)
    product = multiply(values, values, torch.empty((64, 64), dtype=torch.int32))
    assert torch.equal(product, values.int() @ values.int().T)


def test_inference_mode_and_one_thread_change_nothing():
    vectors = torch.randn(1500, 16)
    expected = search(vectors, k=3, precision="float32").ids
    with torch.inference_mode():
        for precision in ("float32", "bfloat16", "int8"):
            assert torch.equal(search(vectors.clone(), k=3, precision=precision).ids, expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 3)
    try:
        assert torch.equal(search(vectors, k=3, precision="int8").ids, expected)
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_thread_arrives_and_the_next_search_works(monkeypatch):
    vectors = torch.randn(1500, 16)
    expected = search(vectors, k=3, precision="float32").ids

    def broken(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("unseen.retrieval.engine.sweep.multiply", broken)
        with pytest.raises(MemoryError, match="no room"):
            search(vectors, k=3, precision="int8")
    assert torch.equal(search(vectors, k=3, precision="int8").ids, expected)


class WithoutFloat64(torch.Tensor):
    """As a tensor on Apple's GPU: it refuses float64, and on the CPU it is an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        moved = function is torch.Tensor.to and any(isinstance(value, torch.device) for value in args)
        if moved or function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.mark.parametrize("separate", [False, True])
def test_a_device_without_float64_decides_on_the_cpu(monkeypatch, separate):
    plain, labels = torch.randn(40, 6), torch.arange(40) % 4
    vectors, theirs = plain.as_subclass(WithoutFloat64), labels.as_subclass(WithoutFloat64)
    ids = torch.arange(40).flip(0).as_subclass(WithoutFloat64)
    gallery = {"gallery": vectors[10:], "gallery_ids": ids[10:]} if separate else {}
    known = {"gallery_labels": theirs[10:]} if separate else {}
    with pytest.raises(TypeError, match="float64"):
        search(vectors, k=3)
    monkeypatch.setattr("unseen.retrieval.engine.vectors.has_float64", lambda device: False)
    found = search(vectors, k=3, ids=ids, **gallery)
    result = evaluate(vectors, theirs, ids=ids, mrr=True, **gallery, **known)
    monkeypatch.undo()
    gallery = {name: value.as_subclass(torch.Tensor) for name, value in gallery.items()}
    known = {name: value.as_subclass(torch.Tensor) for name, value in known.items()}
    ids = ids.as_subclass(torch.Tensor)
    assert torch.equal(found.ids, search(plain, k=3, ids=ids, **gallery).ids)
    assert result.metrics == evaluate(plain, labels, ids=ids, mrr=True, **gallery, **known).metrics
    assert has_float64(torch.device("cpu"))
    assert has_float64(torch.device("cuda"))
    assert not has_float64(torch.device("mps"))


@pytest.mark.slow
def test_needs_only_torch_and_numpy():
    code = (
        "import sys; import unseen.retrieval; "
        "heavy = {'lightning', 'hydra', 'timm', 'torchmetrics', 'sklearn', 'scipy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "dot"])
def test_cuda_equals_float64(similarity):
    rng = np.random.default_rng(0)
    vectors = geometry("duplicates", 3000, 64, rng)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = search(torch.tensor(vectors, device="cuda"), k=10, similarity=similarity)
        assert torch.backends.cuda.matmul.allow_tf32, "the caller's setting was not restored"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert found.ids.device.type == "cuda"
    expected, _ = float64_neighbours(vectors, vectors, np.arange(3000), 10, similarity)
    assert found.ids.tolist() == expected.tolist()
