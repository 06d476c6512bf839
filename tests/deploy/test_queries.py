"""A query may be an image, a part of one, many, or several that are one."""

import csv
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from unseen.data.images import in_order
from unseen.deploy.embedding import embed_images
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import list_images
from unseen.deploy.queries import embed_queries, rows_of
from unseen.deploy.results import show, write


@pytest.fixture
def model(colours):
    class Embeds(colours):
        def embed_batches(self, count, read):
            for image in in_order(lambda row: self.prepare(read(row)), range(count)):
                yield self.embed_prepared(image[None])

    return Embeds()


@pytest.fixture
def gallery(model, photos, tmp_path):
    embed_images(model, list_images(photos), tmp_path / "gallery", batch_size=4, progress=lambda count: None)
    return Gallery.open(tmp_path / "gallery")


def test_an_image_finds_itself_and_a_part_of_it_what_is_alike(model, gallery, photos, tmp_path):
    both = np.concatenate([np.array(Image.open(photos / name / "0.png")) for name in ("bee", "owl")], axis=1)
    Image.fromarray(both).save(tmp_path / "both.png")
    for crop, label in (([0, 0, 10, 10], "bee"), ([10, 0, 99, 99], "owl")):
        queries = embed_queries(model, tmp_path / "both.png", crop=crop)
        rows = rows_of(queries, gallery.search(queries.embeddings, 2), gallery)
        assert [row["rank"] for row in rows] == [1, 2]
        assert rows[0]["path"] == str(photos / label / "0.png")
        assert rows[0]["similarity"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"crop=\[5, 5, 5, 9\] holds none of the 20×10 pixels"):
        embed_queries(model, tmp_path / "both.png", crop=[5, 5, 5, 9])


def test_several_images_are_one_query(model, photos):
    alone = embed_queries(model, photos / "bee")
    fused = embed_queries(model, photos / "bee", fused=True)
    mean = alone.embeddings.mean(0)
    torch.testing.assert_close(fused.embeddings, (mean / mean.norm())[None])
    assert (len(alone.names), fused.names) == (4, [f"4 images of {photos / 'bee'}"])


def test_results_are_shown_and_written(model, gallery, photos, tmp_path, capsys):
    queries = embed_queries(model, photos / "fly")
    rows = rows_of(queries, gallery.search(queries.embeddings, 3), gallery)
    write(rows, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 12
    assert [row["path"] for row in read if row["rank"] == "1"] == queries.names
    show(rows, most=3)
    shown = capsys.readouterr().out
    assert "1 more queries: give output=found.csv" in shown
    assert shown.count("similarity") == 3


@pytest.mark.parametrize("name", ["found.csv", "found.parquet"])
def test_a_query_whose_name_is_no_text_is_written(tmp_path, name):
    write([{"query": "caf\udce9.png", "rank": 1}], tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0


def test_results_are_shown_letter_by_letter(capsys):
    show([{"query": "/photos/[old]/1.jpg", "path": "a[/b].jpg", "label": "[unknown]"}], most=1)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("/photos/[old]/1.jpg", "a[/b].jpg", "[unknown]"))


def test_a_query_that_is_not_there(model, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder or file"):
        embed_queries(model, tmp_path / "nothing.png")


def test_a_query_may_lie_alone_in_a_tar_file(model, photos, tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(photos / "owl" / "1.png", "1.png")
    alone = embed_queries(model, tmp_path / "one.tar")
    torch.testing.assert_close(alone.embeddings, embed_queries(model, photos / "owl" / "1.png").embeddings)


def test_a_name_with_colons_is_a_name(model, photos, tmp_path):
    (tmp_path / "a::b.png").write_bytes((photos / "owl" / "1.png").read_bytes())
    named = embed_queries(model, tmp_path / "a::b.png")
    torch.testing.assert_close(named.embeddings, embed_queries(model, photos / "owl" / "1.png").embeddings)
