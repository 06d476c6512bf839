"""A gallery finds what a loop finds, grows, shrinks, and is whole whatever dies in the middle of a change."""

import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.deploy.gallery import Gallery
from unseen.files import refusing_lock


def columns(names, labels=None):
    return {"path": names, "label": labels or [""] * len(names), "modified": ["1"] * len(names)}


def vectors(count, seed=0, size=4):
    values = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def gallery(tmp_path):
    made = Gallery.create(tmp_path / "gallery", "bundle", 4)
    made.append(vectors(5), columns(list("abcde"), ["x", "y", "x", "y", "z"]))
    made.append(vectors(3, seed=1), {**columns(list("fgh")), "shop": ["1", "2", "1"]})
    return made


def test_it_finds_what_a_loop_finds(gallery):
    queries = vectors(6, seed=2)
    found = gallery.search(torch.from_numpy(queries), k=3)
    for query, ids, similarities in zip(queries, *found, strict=True):
        cosines = [float(query.astype(np.float64) @ other) for other in gallery.embeddings]
        wanted = sorted(range(8), key=lambda row: -cosines[row])[:3]
        assert ids.tolist() == wanted
        np.testing.assert_allclose(similarities, [cosines[row] for row in wanted], rtol=1e-6)


def test_it_searches_among_images_that_have_a_text(gallery):
    found = gallery.search(torch.from_numpy(vectors(1)), k=4, where={"label": "x"})
    assert sorted(found.ids[0].tolist()) == [-1, -1, 0, 2]
    assert found.similarities[0, 2:].tolist() == [-np.inf, -np.inf]
    assert gallery.select({"label": ["x", "z"]}).tolist() == [0, 2, 4]
    assert gallery.select({"shop": "1", "label": ""}).tolist() == [5, 7]
    assert (
        gallery.search(torch.from_numpy(vectors(2)), k=2, where={"label": "q"}).ids.tolist() == [[-1, -1]] * 2
    )
    with pytest.raises(ValueError, match=r"no column 'colour'. Columns: path, label, shop"):
        gallery.select({"colour": "red"})


def test_an_image_keeps_its_id_while_others_come_and_go(gallery):
    row = gallery.row(6)
    assert row == {"id": 6, "path": "g", "label": "", "shop": "2"}
    gallery.remove([0, 5])
    gallery.append(vectors(1, seed=9), columns(["f"]))
    assert gallery.ids.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert gallery.row(6) == row
    before = gallery.embeddings.copy()
    gallery.compact()
    again = Gallery.open(gallery.folder)
    np.testing.assert_array_equal(again.embeddings, before)
    assert isinstance(again.embeddings, np.memmap)
    assert again.ids.tolist() == gallery.ids.tolist()
    assert again.column("path").tolist() == ["b", "c", "d", "e", "g", "h", "f"]
    for missing in (0, 99, -1):
        with pytest.raises(KeyError, match=f"no image with id {missing}"):
            again.row(missing)
    with pytest.raises(KeyError):
        again.remove([1, 0])
    assert len(again) == 7


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 5), st.just("remove"), st.just("compact"), st.just("open")), max_size=12
    )
)
def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(tmp_path_factory, changes):
    gallery = Gallery.create(tmp_path_factory.mktemp("any") / "gallery", "bundle", 4)
    wanted, given_ids = {}, 0
    for step, change in enumerate(changes):
        if change == "compact":
            gallery.compact()
        elif change == "open":
            gallery = Gallery.open(gallery.folder)
        elif change == "remove":
            gone = sorted(wanted)[::2]
            gallery.remove(gone)
            wanted = {id: value for id, value in wanted.items() if id not in gone}
        else:
            added = vectors(change, seed=step)
            gallery.append(added, columns([f"{step}-{row}" for row in range(change)]))
            wanted |= {given_ids + row: (f"{step}-{row}", added[row]) for row in range(change)}
            given_ids += change
    assert gallery.ids.tolist() == sorted(wanted)
    assert gallery.column("path").tolist() == [wanted[id][0] for id in sorted(wanted)]
    for id, vector in zip(gallery.ids, gallery.embeddings, strict=True):
        np.testing.assert_array_equal(vector, wanted[int(id)][1])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda gallery: gallery.append(vectors(1), columns(["z"])), id="append"),
        pytest.param(Gallery.compact, id="compact"),
        pytest.param(lambda gallery: gallery.remove([0]), id="remove"),
    ],
)
def test_a_power_cut_at_any_moment_leaves_what_the_description_names(gallery, monkeypatch, change):
    """On a disk that keeps of files and of folders what it was told to keep, and nothing else for sure."""
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink
    names = {path.name: path.stat().st_ino for path in gallery.folder.iterdir()}
    files = {*names.values()}
    folder = gallery.folder.stat().st_ino

    def keep(descriptor):
        fsync(descriptor)
        files.add(os.fstat(descriptor).st_ino)
        if folder in files:
            files.remove(folder)
            names.clear()
            names.update({path.name: path.stat().st_ino for path in gallery.folder.iterdir()})

    def describe(source, target):
        replace(source, target)
        if Path(target).name == "gallery.json":
            segments = json.loads(Path(target).read_text())["segments"]
            needed = [names.get(f"{name}{kind}") for name in segments for kind in (".npy", ".parquet")]
            assert files >= {os.stat(target).st_ino, *needed}

    def remove(path, missing_ok=False):
        if path.name[0] != ".":
            assert names["gallery.json"] == (gallery.folder / "gallery.json").stat().st_ino
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(os, "replace", describe)
    monkeypatch.setattr(Path, "unlink", remove)
    change(gallery)


def change_forever(folder, ready):
    gallery = Gallery.open(folder)
    ready.set()
    for step in range(10_000):
        gallery.append(vectors(50, seed=step), columns([f"{step}-{row}" for row in range(50)]))
        gallery.remove(gallery.ids[:50].tolist())
        gallery.compact()


@pytest.mark.slow
def test_killed_at_any_moment_it_is_whole(gallery):
    gallery.append(vectors(42, seed=3), columns([f"first-{row}" for row in range(42)]))
    context = multiprocessing.get_context("fork")
    generator = np.random.default_rng(0)
    for _ in range(8):
        ready = context.Event()
        process = context.Process(target=change_forever, args=(gallery.folder, ready))
        process.start()
        assert ready.wait(60)
        process.join(float(generator.uniform(0.01, 0.3)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left = Gallery.open(gallery.folder)
        assert len(left) % 50 == 0
        assert len(left) >= 50
        assert len(left.column("path")) == len(left.embeddings) == len(left)
        left.append(vectors(1), columns(["last"]))
        left.remove(left.ids[-1:].tolist())
        named = set(json.loads((left.folder / "gallery.json").read_text())["segments"])
        assert {path.stem for path in left.folder.glob("[0-9]*.*")} == named


def test_a_change_waits_for_another_one_but_not_for_ever(gallery, monkeypatch):
    held, given_back = threading.Event(), threading.Event()

    def hold():
        with refusing_lock(gallery.folder / ".lock", "held"):
            held.set()
            given_back.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    first, second = gallery.ids[:2].tolist()
    with monkeypatch.context() as hurried:
        hurried.setattr("unseen.deploy.gallery.PATIENCE", 0.1)
        with pytest.raises(ValueError, match="Another process is changing gallery"):
            gallery.remove([first])
    threading.Timer(0.2, given_back.set).start()
    gallery.remove([second])
    other.join()
    assert gallery.ids[0] == first
    assert second not in gallery.ids


def test_what_another_process_added_stays(gallery):
    other = Gallery.open(gallery.folder)
    other.append(vectors(1, seed=4), columns(["i"]))
    gallery.append(vectors(1, seed=5), columns(["j"]))
    assert gallery.column("path").tolist() == list("abcdefghij")
    assert Gallery.open(gallery.folder).version == gallery.version != other.version


def test_what_a_process_left_that_died_goes_and_is_not_in_the_way(tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / ".gallery.4242.json").write_text("{")
    gallery = Gallery.create(folder, "bundle", 2)
    (folder / ".000004.4242.npy").write_bytes(b"half")
    texts = {name: ["a"] for name in ("path", "label", "modified")}
    gallery.append(np.eye(1, 2, dtype=np.float32), texts)
    assert not (folder / ".000004.4242.npy").exists()


def test_a_description_of_another_kind_is_refused(tmp_path):
    Gallery.create(tmp_path / "gallery", "bundle", 2)
    (tmp_path / "gallery" / "gallery.json").write_text("[]")
    with pytest.raises(ValueError, match="is of format None"):
        Gallery.open(tmp_path / "gallery")


def test_what_cannot_be_compared_is_refused(gallery, tmp_path):
    assert len(Gallery.create(gallery.folder, "bundle", 4)) == 8
    with pytest.raises(
        ValueError, match="was embedded by bundle bundle, this is bundle other: other weights"
    ):
        Gallery.create(gallery.folder, "other", 4)
    with pytest.raises(ValueError, match=r"shape \(1, 3\); wanted \(Q, 4\)"):
        gallery.search(torch.ones(1, 3), k=1)
    with pytest.raises(ValueError, match=r"there is no gallery.json in it. Make one: unseen embed"):
        Gallery.open(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that is no gallery"):
        Gallery.create(tmp_path / "full", "bundle", 4)
    description = gallery.folder / "gallery.json"
    state = json.loads(description.read_text())
    description.write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(ValueError, match="of format 2; this version of unseen reads 1"):
        Gallery.open(gallery.folder)
    description.write_text("{")
    with pytest.raises(ValueError, match="is not the description of a gallery"):
        Gallery.open(gallery.folder)
    description.write_text(json.dumps(state))
    next(gallery.folder.glob("*.parquet")).unlink()
    with pytest.raises(ValueError, match="a part cannot be read"):
        Gallery.open(gallery.folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000002.npy", b""),
        ("000002.npy", b"\x93NUMPY"),
        ("000002.parquet", b""),
        ("gallery.json", b"[" * 100_000),
        ("gallery.json", b'{"format": 1, "bundle": "bundle", "size": null}'),
        ("gallery.json", b'{"format": 1, "bundle": "bundle", "size": 4, "segments": null}'),
    ],
)
def test_a_file_that_is_broken_is_named(gallery, name, content):
    (gallery.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a part cannot be read|is not the description of a gallery"):
        Gallery.open(gallery.folder)


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), (3, 5), (12,)])
def test_embeddings_of_another_number_or_size_than_the_table_says_are_refused(gallery, shape):
    np.save(gallery.folder / "000002.npy", np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"a part cannot be read \(000002.npy holds .*, not \(3, 4\)\)"):
        Gallery.open(gallery.folder)
