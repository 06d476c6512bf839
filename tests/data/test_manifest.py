"""The manifest refuses what cannot be trusted, and survives a trip to disk byte for byte."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unseen.data.manifest import Manifest, ManifestError


def table(**changes):
    columns = {
        "root": "/images",
        "paths": ("a/1.png", "a/2.png", "b/1.png"),
        "labels": np.array([0, 0, 1]),
        "class_names": ("a", "b"),
        "roles": np.array(["train", "train", "test"]),
    }
    return Manifest(**(columns | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paths": (), "labels": np.array([]), "roles": np.array([])}, "No images found under '/images'"),
        ({"labels": np.array([0, 1])}, "'labels': 2"),
        ({"labels": np.array([0, 0, 2])}, "0 … 1"),
        ({"roles": np.array(["train", "train", "val"])}, "'val'.*train, query, gallery, test"),
        ({"class_names": ("a", "a")}, "'a' stands twice"),
        (
            {"roles": np.array(["train", "test", "test"])},
            r"Class 'a' is in train and test \(1 and 1 images\)",
        ),
        ({"paths": ("a/1.png", "a/2.png", "a/2.png")}, r"Image 'a/2\.png' is in train and test\. Remove one"),
        (
            {"paths": ("a/1.png",) * 3, "boxes": np.array([[0, 0, 2, 2], [0, 0, 3, 3], [0, 0, 3, 3]])},
            r"Image 'a/1\.png' is in train and test.*box of its own object",
        ),
        ({"boxes": np.zeros((3, 2))}, r"\(3, 2\), wanted \(3, 4\)"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(changes, words):
    with pytest.raises(ManifestError, match=words):
        table(**changes)


def test_one_file_under_two_paths_has_one_role(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "1.png")
    for path in ("b/../a/1.png", str(tmp_path / "a/1.png"), "linked/1.png", "b/link.png"):
        for roles in (["train", "train", "test"], ["query", "test", "gallery"]):
            with pytest.raises(ManifestError, match=rf"Image 'a/1\.png' alias '{path}' is in {roles[0]} and"):
                table(root=tmp_path, paths=("a/1.png", "b/1.png", path), roles=np.array(roles))
    assert len(table(root=tmp_path, paths=("b/1.png", "a/1.png", "linked/1.png"), roles=["train"] * 3)) == 3


names = st.text(
    st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_saving_and_loading_changes_nothing(tmp_path_factory, data):
    class_names = tuple(data.draw(st.lists(names, min_size=1, max_size=5, unique=True)))
    count = data.draw(st.integers(1, 8))
    labels = np.array(
        data.draw(st.lists(st.integers(0, len(class_names) - 1), min_size=count, max_size=count))
    )
    role_of = np.array(data.draw(st.lists(st.sampled_from(["train", "test"]), min_size=5, max_size=5)))
    boxed = data.draw(st.booleans())
    manifest = Manifest(
        root="/some/where else",
        paths=tuple(data.draw(st.lists(names, min_size=count, max_size=count, unique=True))),
        labels=labels,
        class_names=class_names,
        roles=role_of[labels],
        boxes=np.arange(count * 4).reshape(count, 4) if boxed else None,
        super_classes=tuple(f"super, {label}" for label in labels) if boxed else None,
    )
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    manifest.save(path)
    loaded = Manifest.load(path)
    assert loaded.content_hash == manifest.content_hash
    assert loaded.paths == manifest.paths
    assert [loaded.class_names[label] for label in loaded.labels] == [class_names[label] for label in labels]
    assert loaded.root == manifest.root
    assert loaded.super_classes == manifest.super_classes
    assert list(path.parent.iterdir()) == [path]


def test_the_hash_is_a_plain_sha256_of_the_rows_and_ignores_the_root():
    rows = [
        ("a/1.png", "0", "a", "train", "", "", "", "", ""),
        ("a/2.png", "0", "a", "train", "", "", "", "", ""),
        ("b/1.png", "1", "b", "test", "", "", "", "", ""),
    ]
    wanted = hashlib.sha256(b"".join("\x1f".join(row).encode() + b"\x1e" for row in rows)).hexdigest()
    assert table().content_hash == table(root="/elsewhere").content_hash == wanted
    assert table(class_names=("a", "c")).content_hash != wanted


def test_an_edited_file_and_a_strange_file_are_refused(tmp_path):
    path = tmp_path / "manifest.csv"
    table().save(path)
    path.write_text(path.read_text().replace("b/1.png", "b/9.png"))
    with pytest.raises(ManifestError, match="changed by hand"):
        Manifest.load(path)
    path.write_text("path,label\n")
    with pytest.raises(ManifestError, match="not a manifest"):
        Manifest.load(path)


def test_one_picture_may_hold_objects_of_both_sides() -> None:
    boxes = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [4, 0, 6, 2]])
    assert len(set(table(paths=("a.png",) * 3, boxes=boxes).paths)) == 1


def test_line_ends_of_another_system_do_not_reach_the_root(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    table().save(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Manifest.load(path).root == table().root


def test_selected_rows_keep_their_labels():
    chosen = table().select([2, 0])
    assert chosen.paths == ("b/1.png", "a/1.png")
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.class_names == ("a", "b")
    assert table().select(table().roles == "test").paths == ("b/1.png",)


def test_another_root_is_used_on_another_machine(tmp_path):
    table().save(tmp_path / "manifest.csv")
    moved = Manifest.load(tmp_path / "manifest.csv", root=tmp_path)
    assert moved.absolute(0) == tmp_path / "a/1.png"
