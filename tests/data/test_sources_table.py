"""Tables of images and saved manifests: what is read and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unseen.data.manifest import Manifest, ManifestError
from unseen.data.sources import folder, manifest_file, table

Tree = Callable[..., Path]


def read_table(folder_of_table: Path, text: str, **options: Any) -> Manifest:
    path = folder_of_table / "images.csv"
    path.write_bytes(text.encode())
    defaults = {"root": None, "split": None, "train_fraction": 0.5, "seed": 0, "listed": "test"}
    return table.read(path, **(defaults | options))


def test_roles_come_from_their_column_and_paths_from_the_folder_of_the_table(tree: Tree) -> None:
    root = tree({"a": 2, "b": 1, "c d": 1})
    manifest = read_table(
        root, "path,label,role\r\na/0.png,x,train\r\nb/0.png,y,query\r\nc d/0.png,y,gallery\r\n"
    )
    assert manifest.class_names == ("x", "y")
    assert manifest.labels.tolist() == [0, 1, 1]
    assert manifest.roles.tolist() == ["train", "query", "gallery"]
    assert manifest.absolute(2).is_file()


def test_without_roles_classes_are_divided_and_numbers_are_ordered_as_numbers(tree: Tree) -> None:
    root = tree({"a": 4})
    rows = "".join(f"{index}.png,{label}\n" for index, label in enumerate((10, 9, 2, 10)))
    manifest = read_table(root, f"path,label\n{rows}", root=root / "a")
    assert manifest.class_names == ("2", "9", "10")
    assert manifest.roles.tolist() == ["test", "test", "train", "test"]


def test_an_explicit_split_goes_before_the_role_column(tree: Tree) -> None:
    manifest = read_table(tree({"a": 2}), "path,label,role\na/0.png,x,test\na/1.png,y,train\n", split="order")
    assert manifest.roles.tolist() == ["train", "test"]


def test_paths_of_a_table_made_on_windows_are_read_everywhere(tree: Tree) -> None:
    manifest = read_table(tree({"a": 1, "b": 1}), "path,label\na\\0.png,x\nb\\0.png,y\n")
    assert manifest.paths == ("a/0.png", "b/0.png")


def test_boxes_and_super_classes(tree: Tree) -> None:
    text = "path,label,left,top,right,bottom,super_class\na/0.png,x,0,1,5,6,birds\na/1.png,y,1,1,4,4,cars\n"
    manifest = read_table(tree({"a": 2}), text)
    assert manifest.boxes is not None
    assert manifest.boxes.tolist() == [[0, 1, 5, 6], [1, 1, 4, 4]]
    assert manifest.super_classes == ("birds", "cars")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", "'path' is missing"),
        ("path,label,split\n", "unknown column 'split'"),
        ("path,label\n", "no rows"),
        ("path,label\na/0.png,\n", "row 1 has no label"),
        ("path,label\na/0.png\n", "row 1 has more or fewer fields"),
        ("path,label\na/0.png,x,1\n", "row 1 has more or fewer fields"),
        ("path,label,role\na/0.png,x,train\na/1.png,y,exam\n", "row 2 has role 'exam'"),
        ("path,label,role\na/0.png,x,train\na/1.png,x,test\n", "'x' is in train and test"),
        ("path,label\na/0.png,x\na/9.png,y\n", r"1 of 2 listed images are missing.*'a/9.png'"),
        ("path,label,left\na/0.png,x,1\n", "only left of the box"),
        ("path,label,left,top,right,bottom\na/0.png,x,1,1,2.5,3\na/1.png,y,1,1,2,3\n", "whole numbers"),
        (f"path,label,left,top,right,bottom\na/0.png,x,1,1,2,{10**20}\na/1.png,y,1,1,2,3\n", "too large"),
        (
            "path,label,left,top,right,bottom\na/0.png,x,1,1,2,2\na/1.png,y,5,2,3,4\n",
            r"row 2 has the empty box \(5, 2, 3, 4\) \(1 such\).*not width and height",
        ),
        ("PK\3\4\0\0 an archive", r"images\.csv' is no text. Save a table as CSV"),
        ("", "'path' is missing"),
        ("path,label\na/0.png,x\na/1.png,y\na/0.png,x\n", "rows 1 and 3 are of the same image, 'a/0.png'"),
        ("path,label\na/0.png,x\na/0.png,y\n", "rows 1 and 2 are of the same image"),
        ("path,label\na/0.png,x\n./a//0.png,x\n", "rows 1 and 2 are of the same image"),
        ("path,label\na/0.png,x\na/../a/0.png,x\n", "the same image, 'a/0.png' alias 'a/../a/0.png'"),
        (
            "path,label,class\na/0.png,0,cat\na/1.png,0,dog\n",
            "row 2 has label '0' and class 'dog'.*earlier row label '0' and class 'cat'",
        ),
        (
            "path,label,class\na/0.png,1,cow\na/1.png,2,cow\n",
            "row 2 has label '2' and class 'cow'.*earlier row label '1' and class 'cow'",
        ),
        ('path,label\na/1.png,x\n"a/0.png"a,y\n', "images.csv' line 3 cannot be read.*in quotes"),
        ('# unseen\npath,label\n"a/0.png"a,y\n', "images.csv' line 3 cannot be read"),
        ('path,label\n"a/0.png,x\na/1.png,y\n', "images.csv' line 3 cannot be read"),
    ],
)
def test_refuses(tree: Tree, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_table(tree({"a": 2}), text)


def test_a_link_to_an_image_is_that_image(tree: Tree) -> None:
    root = tree({"a": 1, "b": 1})
    (root / "b" / "link.png").symlink_to(root / "a" / "0.png")
    with pytest.raises(ManifestError, match=r"rows 1 and 3 .* image, 'a/0\.png' alias 'b/link\.png'"):
        read_table(root, "path,label\na/0.png,x\nb/0.png,y\nb/link.png,y\n")


def test_a_table_in_another_encoding_is_refused(tree: Tree) -> None:
    root = tree({"a": 2})
    text = "path,label\na/0.png,\u00e9\na/1.png,y\n"
    for encoding, message in (("utf-16", "is UTF-16 text"), ("latin-1", r"'\\udce9' is not UTF-8 text")):
        (root / "other.csv").write_bytes(text.encode(encoding))
        with pytest.raises(ManifestError, match=message):
            table.read(root / "other.csv", root=None, split=None, train_fraction=0.5, seed=0, listed="test")


def test_a_picture_of_several_objects_stands_once_for_each(tree: Tree) -> None:
    text = "path,label,left,top,right,bottom\na/0.png,x,0,0,4,4\na/0.png,y,4,4,8,8\n"
    assert len(read_table(tree({"a": 1}), text)) == 2


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a file"):
        table.read(tmp_path / "no.csv", root=None, split=None, train_fraction=0.5, seed=0, listed="test")


def test_a_saved_manifest_is_read_again_also_where_the_images_were_moved(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 2, "b": 2})
    original = folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test")
    path = tmp_path / "run" / "manifest.csv"
    original.save(path)
    assert manifest_file.read(path, root=None).content_hash == original.content_hash
    moved = root.rename(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=r"does not exist here.*data\.root"):
        manifest_file.read(path, root=None)
    assert manifest_file.read(path, root=moved).content_hash == original.content_hash
    (moved / "b" / "1.png").unlink()
    with pytest.raises(ManifestError, match="1 of 4 listed images"):
        manifest_file.read(path, root=moved)
    with pytest.raises(ManifestError, match="not a file"):
        manifest_file.read(tmp_path / "no.csv", root=None)


def test_a_manifest_edited_by_hand_is_read_as_a_table(tree: Tree, tmp_path: Path) -> None:
    root = tree({"a": 1, "b": 1, "c": 1})
    path = tmp_path / "manifest.csv"
    folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test").save(path)
    edited = path.read_text().replace("b/0.png,1,b,test", "b/0.png,1,b,train")
    manifest = read_table(root, edited)
    assert manifest.class_names == ("a", "b", "c")
    assert manifest.roles.tolist() == ["train", "train", "test"]
    assert manifest.boxes is None
