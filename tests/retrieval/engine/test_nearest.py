"""Each query as deep as it wants: what stands first is what all pairs in float64 say."""

import pytest
import torch

from unseen.retrieval import search
from unseen.retrieval.engine.inputs import check_inputs
from unseen.retrieval.engine.keys import from_keys
from unseen.retrieval.engine.nearest import nearest_keys


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("separate", [False, True])
def test_every_query_finds_as_many_as_it_wants(similarity, precision, separate):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 24, generator=generator).repeat_interleave(35, dim=0)
    vectors = vectors + 0.3 * torch.randn(vectors.shape, generator=generator)
    vectors[7] = vectors[3]  # equals, of which the lower id is nearer
    gallery = vectors[:1000] if separate else None
    depth = torch.randint(1, 90, (len(vectors),), generator=generator)
    depth[::70] = 700  # a few large classes among many small ones
    whole = search(vectors, gallery, k=700, similarity=similarity, precision="float64")
    inputs = check_inputs(vectors, gallery, similarity, None, None)
    similarities, positions = from_keys(nearest_keys(inputs, depth, 2**30, precision))
    assert positions.shape == (len(vectors), int(depth.max()))
    for row, wanted in enumerate(depth.tolist()):
        assert torch.equal(positions[row, :wanted], whole.positions[row, :wanted])
        assert torch.equal(similarities[row, :wanted], whole.similarities[row, :wanted])
