"""Images on a Ray cluster: the same gallery as here, also when a node dies; refusals are in words."""

import time

import numpy as np
import pytest
import torch

from unseen.data.images import PassingError
from unseen.deploy.embedding import embed_images
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import list_images
from unseen.deploy.runners import ray as on_ray
from unseen.deploy.runners.local import embed_here
from unseen.deploy.runners.ray import Ray, _received, _Worker


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'unseen-dml[ray]'")
    return pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(ray):
    """A head that computes nothing, and two nodes with a core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def slow(tmp_path, ray):
    """Embeds an image by its mean colour, takes its time, and notes on which node it was."""
    notes = tmp_path / "notes"
    notes.mkdir()

    class Slow:  # in a function: Ray then sends what it is, not where it is imported from
        def __init__(self):
            self.size, self.facts, self.notes = 3, {"bundle": "b" * 64}, notes

        def to(self, device):
            return self

        def prepare(self, pixels):
            return torch.from_numpy(pixels).permute(2, 0, 1)[:, :8, :8].float()

        def embed_prepared(self, batch):
            (self.notes / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.3)
            return torch.nn.functional.normalize(batch.mean((2, 3)), dim=1)

    return Slow()


@pytest.mark.slow
def test_nodes_embed_by_a_network_as_it_is_done_here(cluster, network, photos):
    places = list_images(photos / "fly").places
    [here], [part] = (
        embed_here(network, places, 4),
        Ray(None, cpus=1, gpus=0, device=None)(network, places, 4),
    )
    assert part.rows == [0, 1, 2, 3]
    np.testing.assert_allclose(part.embeddings, here.embeddings, atol=1e-6)


@pytest.mark.slow
def test_two_nodes_embed_and_one_dies(cluster, slow, colours, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "BATCHES", 1)
    listing = list_images(photos)
    embed_images(colours(), listing, tmp_path / "here", batch_size=1, progress=lambda _: None)
    here = Gallery.open(tmp_path / "here")
    last = cluster.nodes[-1]
    counted = []

    def progress(count):
        counted.append(count)
        if len(counted) == 2:  # after the first image, when both nodes are at work
            end = time.monotonic() + 60
            while len(list(slow.notes.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            cluster.remove_node(last, allow_graceful=False)

    runner = Ray(address=None, cpus=1, gpus=0, device=None)
    outcome = embed_images(
        slow, listing, tmp_path / "gallery", batch_size=1, progress=progress, runner=runner
    )
    assert last.node_id in {path.name for path in slow.notes.iterdir()}, "it had been at work"
    assert (outcome.embedded, outcome.known, sum(counted)) == (12, 0, 13)
    assert list(outcome.unreadable) == [str(photos / "owl" / "broken.png")]
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.ids.tolist() == here.ids.tolist()
    for name in here.columns:
        assert gallery.column(name).tolist() == here.column(name).tolist()
    np.testing.assert_allclose(gallery.embeddings, here.embeddings, atol=1e-6)

    with pytest.raises(ValueError, match=r"runner.cpus=2 .* the most cores of a node are 1, the most GPUs 0"):
        next(Ray(address=None, cpus=2, gpus=0, device=None)(slow, listing.places, 1))


@pytest.fixture
def block(colours, photos):
    """What a worker makes of all photos."""
    places = list_images(photos).places
    worker = _Worker.__new__(_Worker)
    worker.model, worker.batch_size, worker.threads = colours(), 5, 1
    given = {"start": np.array([0]), "places": np.array([places], dtype=np.object_)}
    return places, worker, given


def test_what_a_worker_gives_is_what_is_embedded_here(block, colours, photos, tmp_path):
    places, worker, given = block
    part = _received(worker(given), places, 0)
    assert part.rows == list(range(12))
    assert list(part.unreadable) == [str(photos / "owl" / "broken.png")]
    embed_images(colours(), list_images(photos), tmp_path / "here", batch_size=5, progress=lambda _: None)
    np.testing.assert_allclose(part.embeddings, Gallery.open(tmp_path / "here").embeddings, atol=1e-6)
    with pytest.raises(RuntimeError, match="images 0 to 12 where image 13 was due"):
        _received(worker(given), places, 13)


def test_a_node_that_does_not_see_an_image_is_named(block, photos):
    places, worker, given = block
    hidden = photos / "fly" / "2.png"
    content = hidden.read_bytes()
    hidden.unlink()
    given = worker(given)
    assert str(hidden) in _received(given, places, 0).unreadable, "it is nowhere: as without a cluster"
    hidden.write_bytes(content)
    with pytest.raises(ValueError, match=r"Node '.*' of the Ray cluster does not see '.*fly/2.png'"):
        _received(given, places, 0)


def test_what_only_a_node_cannot_read_now_stops_it(block, monkeypatch):
    places, worker, given = block

    def fails(place):
        raise PassingError("Image 'x' cannot be read now")

    monkeypatch.setattr("unseen.deploy.runners.local.read_place", fails)
    with pytest.raises(PassingError, match=r"On node '.*': Image 'x' cannot be read now"):
        _received(worker(given), places, 0)
