"""A file is replaced whole or not at all."""

import os

import pytest

from unseen.files import replacing


def test_it_appears_whole_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as temporary, temporary.open("w") as file:
        file.writelines(["half", None])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
