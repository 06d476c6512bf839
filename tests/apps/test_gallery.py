"""From a bundle to what is found in a gallery, as a user types it."""

import csv
import signal
import time

import numpy as np
import pytest
from PIL import Image

import unseen as library

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, coloured_tree):
    folder = tmp_path_factory.mktemp("bundle")
    model = library.embedder("resnet10", weights="none", image_size=32)
    run = library.fit(
        model,
        library.dataset(coloured_tree),
        epochs=1,
        folder=folder / "run",
        overrides=[
            "pictures=false",
            "sampler.classes_per_batch=4",
            "sampler.images_per_class=4",
            "data.workers=0",
        ],
    )
    return run.save(folder / "bundle")


def test_images_are_embedded_indexed_and_found(unseen, bundle, coloured_tree, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    status, output = unseen("embed", f"bundle={bundle}", f"images={coloured_tree}", "gallery=gallery")
    assert (status, "64 images embedded into gallery." in output) == (0, True), output
    status, output = unseen("embed", f"bundle={bundle}", f"images={coloured_tree}", "gallery=gallery")
    assert "0 images embedded into gallery, 64 were there already." in output
    status, output = unseen("embed", f"bundle={bundle}", "images=more", "gallery=gallery")
    assert (status, "1 could not be read: gallery/unreadable.csv" in output) == (1, True), output

    query = coloured_tree / "class 3" / "0.png"
    words = ("search", f"bundle={bundle}", "gallery=gallery", "k=3")
    status, output = unseen(*words, f"query='{query}'")
    assert status == 0, output
    assert "class 3" in output.splitlines()[2]
    assert "1.0000" in output
    status, output = unseen(*words, f"query={coloured_tree}", "output=found.csv", "+where.label=class 5")
    assert (status, "64 queries. Written to found.csv" in output) == (0, True), output
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"class 5"}
    assert len(rows) == 64 * 3
    status, output = unseen(*words, f"query='{query}'", "+where.label=none", "output=found.csv")
    assert (status, "Nothing found" in output) == (0, True)
    assert (tmp_path / "found.csv").read_text().splitlines() == ["query"]

    status, output = unseen("inspect", f"bundle={bundle}", "gallery=gallery", "tables=parquet")
    assert (status, "50 % of copies are at least" in output) == (0, True), output
    assert "pairs of near-duplicates in" in output
    assert {path.name for path in (tmp_path / "gallery" / "inspection").iterdir()} == {
        "duplicates.parquet", "outliers.parquet", "labels.parquet", "images.parquet",
    }  # fmt: skip
    status, output = unseen("inspect", "gallery=gallery")
    assert (status, "or duplicate=<similarity>" in output) == (2, True)

    pytest.importorskip("faiss")
    status, output = unseen("index", "gallery=gallery", "index=hnsw", "recall=0.9", "remove=[0,1]")
    assert status == 0, output
    assert "2 images taken out; 62 are left." in output
    assert "62 images indexed: finds" in output
    status, output = unseen(*words, f"query='{query}'")
    assert (status, "1.0000" in output) == (0, True)
    status, output = unseen("index", "gallery=gallery", "remove=[2]")
    assert (status, "61 are left." in output) == (0, True)
    assert (tmp_path / "gallery" / "index").is_dir()
    status, output = unseen("index", "gallery=gallery")
    assert (status, "Nothing to do." in output) == (2, True)
    status, output = unseen("index", "gallery=gallery", "index=exact")
    assert (status, "61 images, searched exactly." in output) == (0, True)
    assert not (tmp_path / "gallery" / "index").exists()


def test_what_cannot_work_is_refused_in_words(unseen, bundle, coloured_tree, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    for words, message in (
        (
            ("embed", f"bundle={bundle}", f"images={coloured_tree}", "gallery=full"),
            "something that is no gallery",
        ),
        (("search", f"bundle={bundle}", "gallery=nowhere", "query=a.png"), "Make one: unseen embed"),
        (("index", "gallery=nowhere", "index=hsnw"), "did you mean 'hnsw'?"),
        (("search", f"bundle={bundle}", "gallery=nowhere"), "query has no value. Give it one: query=<value>"),
        (("check", "data=folder"), "data.root has no value. Give it one: data.root=<value>"),
        (
            ("embed", f"bundle={bundle}", f"images={coloured_tree}", "gallery=new", "device=gpu0"),
            "there is no such device",
        ),
    ):
        status, output = unseen(*words)
        assert (status, message in output, "Traceback" in output) == (2, True, False), output
    assert not (tmp_path / "new").exists()


def test_killed_it_goes_on(start, unseen, bundle, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(3000):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            images / f"{index:04d}.png"
        )
    words = ("embed", f"bundle={bundle}", f"images={images}", "gallery=gallery")
    process = start(*words)
    first = tmp_path / "gallery" / "000001.npy"
    end = time.monotonic() + 240
    while not first.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = len(library_gallery(tmp_path))
    assert left in (0, 2048)
    status, output = unseen(*words)
    assert status == 0, output
    assert f"{3000 - left} images embedded" in output
    gallery = library_gallery(tmp_path)
    assert sorted(gallery.column("path").tolist()) == [
        str(images / f"{index:04d}.png") for index in range(3000)
    ]


def library_gallery(folder):
    from unseen.deploy.gallery import Gallery

    return Gallery.open(folder / "gallery")
