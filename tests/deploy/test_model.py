"""A model is sent to other processes and copied whole, and copies do not share what they catch."""

import copy
import pickle

import pytest
import torch

from unseen.deploy.listing import list_images, read_place


@pytest.mark.parametrize("copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy])
def test_a_copy_embeds_as_the_model_does(network, photos, copied):
    images = [read_place(place) for place in list_images(photos / "bee").places]
    wanted = network.embed(images)
    other = copied(network)
    assert other.facts == network.facts
    assert torch.equal(other.embed(images), wanted)
    for parameter in network.embedder.parameters():
        parameter.zero_()
    assert torch.equal(other.embed(images), wanted)
    assert other.attention(images[0]).maps.keys() == network.attention(images[0]).maps.keys()
