"""Duplicates, outliers and labels against loops over all images, and against scikit-learn."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import LocalOutlierFactor

from unseen.deploy.gallery import Gallery
from unseen.deploy.inspection import (
    PAIR,
    duplicates,
    inspect,
    nearest,
    outlyingness,
    similarity_of_copies,
    votes,
)
from unseen.deploy.results import write


def made(folder, embeddings, labels, gone=()):
    embeddings = np.asarray(embeddings, dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    gallery = Gallery.create(folder, "b" * 64, embeddings.shape[1])
    columns = {"path": [f"{row}.png" for row in range(len(labels))], "modified": ["1"] * len(labels)}
    gallery.append(embeddings, {**columns, "label": labels})
    if len(gone):
        gallery.remove(gone)
    return gallery


@pytest.fixture
def gallery(tmp_path):
    """Five clusters of 60 in 16 dimensions, some copies, some strangers; ids are not rows."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 16))
    values = np.repeat(centres, 60, axis=0) + 0.4 * generator.normal(size=(300, 16))
    values[10] = values[50] + 1e-3
    values[11] = values[250]  # of another class
    values[12] = values[250]
    values[100] = centres[4]
    values[200] = generator.normal(size=16)
    labels = np.repeat(list("vwxyz"), 60).tolist()
    return made(tmp_path / "gallery", values, labels, gone=[0, 3, 299])


def cosines(gallery):
    values = gallery.embeddings.astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = values @ values.T
    np.fill_diagonal(found, -np.inf)
    return found


@pytest.mark.parametrize("similarity", [0.9, 0.97, 0.9999, 0.999999])
def test_duplicates_are_all_pairs_that_are_similar_enough(gallery, similarity):
    found = duplicates(gallery, nearest(gallery, 5), similarity)
    wanted = np.argwhere(np.triu(cosines(gallery).astype(np.float32) >= similarity))
    assert sorted(map(tuple, found.rows.tolist())) == list(map(tuple, wanted.tolist()))
    assert len(wanted) > 1
    assert (np.diff(found.similarities) <= 0).all()
    np.testing.assert_allclose(found.similarities, cosines(gallery)[tuple(found.rows.T)], rtol=1e-6)


def test_groups_are_what_hangs_together(tmp_path):
    turns = np.array([0, 0.1, 0.2, 0.3, 1.5, 1.55, 3.0])
    values = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    gallery = made(tmp_path / "gallery", values, [""] * 7)
    found = duplicates(gallery, nearest(gallery, 3), np.cos(0.12))
    assert dict(zip(map(tuple, found.rows.tolist()), found.groups.tolist(), strict=True)) == {
        (0, 1): 1, (1, 2): 1, (2, 3): 1, (4, 5): 2,
    }  # fmt: skip


def test_of_many_copies_all_are_in_one_group(tmp_path):
    values = np.concatenate([np.ones((150, 4)), np.eye(4)])
    gallery = made(tmp_path / "gallery", values, [""] * 154)
    found = duplicates(gallery, nearest(gallery, 4), 0.99)
    assert set(found.rows.flatten().tolist()) == set(range(150))
    assert set(found.groups.tolist()) == {1}


@pytest.mark.parametrize("k", [3, 20, 100])
def test_outliers_are_those_of_scikit_learn_within_each_class(gallery, k):
    found = outlyingness(gallery, k)
    labels = gallery.column("label")
    for label in "vwxyz":
        rows = np.flatnonzero(labels == label)
        peer = LocalOutlierFactor(min(k, len(rows) - 1), algorithm="brute", metric="cosine")
        peer.fit(gallery.embeddings[rows].astype(np.float64))
        np.testing.assert_allclose(found.factor[rows], -peer.negative_outlier_factor_, rtol=1e-4)
        away, _ = peer.kneighbors()
        np.testing.assert_allclose(found.distance[rows], away.mean(axis=1), atol=1e-6)


def test_votes_are_counted(gallery):
    found = votes(gallery, nearest(gallery, 7))
    labels = gallery.column("label")
    for row, similar in enumerate(cosines(gallery)):
        near = labels[np.argsort(-similar, kind="stable")[:7]].tolist()
        most = max(near.count(label) for label in near)
        assert found.label[row] == next(label for label in near if near.count(label) == most)
        assert found.share[row] == pytest.approx(most / 7)


def test_what_was_planted_is_found(gallery, tmp_path):
    found = inspect(gallery, duplicate=0.9999, outlier=1.5, agreement=0.8, k=10)
    paths = [({pair["path_1"], pair["path_2"]}, pair["same_label"]) for pair in found.duplicates]
    assert ({"10.png", "50.png"}, True) in paths
    assert ({"11.png", "250.png"}, False) in paths
    assert ({"11.png", "12.png"}, True) in paths
    assert len(paths) == 4
    wrong = {row["path"]: row["neighbours_label"] for row in found.labels}
    assert {name: wrong.get(name) for name in ("11.png", "12.png", "100.png")} == {
        "11.png": "z", "12.png": "z", "100.png": "z",
    }  # fmt: skip
    assert {"200.png", "11.png", "12.png", "100.png"} <= {row["path"] for row in found.outliers[:6]}
    assert len(found.images) == len(gallery)
    for name, rows in vars(found).items():
        write(rows, tmp_path / f"{name}.csv")
        write(rows, tmp_path / f"{name}.parquet")
    with (tmp_path / "duplicates.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == PAIR
    assert [float(row["similarity"]) for row in read] == [row["similarity"] for row in found.duplicates]
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "duplicates.parquet").to_pylist() == found.duplicates
    assert len(parquet.read_table(tmp_path / "images.parquet")) == len(gallery)


def test_without_labels_no_label_is_wrong_and_all_are_one_class(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 4))
    found = inspect(
        made(tmp_path / "gallery", values, [""] * 40), duplicate=1, outlier=1.5, agreement=0.1, k=50
    )
    assert found.labels == found.duplicates == []
    assert all(np.isfinite(row["outlier_factor"]) for row in found.images)


def test_an_image_alone_in_its_class_has_no_factor(tmp_path):
    gallery = made(tmp_path / "gallery", np.eye(3) + 0.1, ["x", "x", "y"])
    found = outlyingness(gallery, 10)
    assert np.isnan(found.factor).tolist() == np.isnan(found.distance).tolist() == [False, False, True]


def test_numbers_that_mean_nothing_are_refused(gallery, tmp_path):
    given = {"duplicate": 0.9, "outlier": 1.5, "agreement": 0.8, "k": 10}
    for name, value in (("duplicate", 1.1), ("outlier", 0), ("agreement", 0), ("agreement", 80), ("k", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: wanted"):
            inspect(gallery, **{**given, name: value})
    with pytest.raises(ValueError, match="holds 1 images: nothing to compare"):
        inspect(made(tmp_path / "one", [[1.0, 0]], ["x"]), **given)


def test_the_similarity_of_copies_is_that_of_copies(colours, tmp_path):
    """A model of mean colours sees half of each image: copies of plain ones are alike, of others less."""
    model = colours()
    model.embed = lambda images: model.embed_prepared(
        torch.stack([model.prepare(np.asarray(image)) for image in images])
    )
    generator = np.random.default_rng(0)
    paths, embeddings = [], []
    for row in range(30):
        pixels = np.broadcast_to(generator.integers(0, 256, 3), (40, 40, 3)).astype(np.uint8)
        paths.append(str(tmp_path / f"{row}.png"))
        Image.fromarray(pixels).save(paths[-1])
        embeddings.append(model.embed([pixels])[0].numpy())
    gallery = Gallery.create(tmp_path / "gallery", "b" * 64, 3)
    gallery.append(np.stack(embeddings), {"path": paths, "label": [""] * 30, "modified": [""] * 30})
    assert 0.999 < similarity_of_copies(model, gallery, 0.9) <= 1.000001
    assert similarity_of_copies(model, gallery, 1.0) <= similarity_of_copies(model, gallery, 0.5)
    with pytest.raises(ValueError, match="was embedded by bundle"):
        similarity_of_copies(colours("c" * 64), gallery, 0.9)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"Give one: duplicate=0\.95"):
        similarity_of_copies(model, gallery, 0.9)
