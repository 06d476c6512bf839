"""`unseen check`: its files, its exit status, and what it says when it cannot begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

Check = Callable[..., CompletedProcess[str]]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes that train and two that test, four pictures of each."""
    for label, name in enumerate("abcd"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            small = np.random.default_rng(10 * label + index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((80, 80), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def check(typed: Check, tmp_path: Path) -> Check:
    return lambda *overrides: typed("check", *overrides, folder=tmp_path)


@pytest.mark.slow
def test_a_sound_set_passes_and_a_leak_does_not(check: Check, classes: Path, tmp_path: Path) -> None:
    data = ("data=folder", f"data.root={classes}")
    sound = check(*data)
    assert sound.returncode == 0, sound.stderr
    written = {path.name for path in (tmp_path / "runs" / "check_folder").iterdir()}
    assert written == {"report.md", "report.json", "quarantine.txt"}
    assert "16 images of 4 classes" in sound.stderr

    (classes / "a" / "0.png").rename(classes / "c" / "from a.png")
    Image.open(classes / "c" / "from a.png").save(classes / "a" / "0.png")
    leaking = check(*data, "output=leaking")
    assert leaking.returncode == 1, leaking.stderr
    assert "error: 1 images are in training and in test" in " ".join(leaking.stderr.split())
    assert (tmp_path / "leaking" / "quarantine.txt").read_text() == "a/0.png\n"
    assert check(*data, "check.allow=[leakage]").returncode == 0
    # Nothing but the reports was written: no log, no copy of the configuration.
    assert {path.name for path in tmp_path.iterdir()} == {"images", "runs", "leaking"}


@pytest.mark.slow
def test_using_the_quarantine_list_does_not_shorten_it(check: Check, classes: Path, tmp_path: Path) -> None:
    """The command that reads it writes it again, under the same name."""
    Image.open(classes / "c" / "0.png").save(classes / "a" / "9.png")
    listing = tmp_path / "runs" / "check_folder" / "quarantine.txt"
    data = ("data=folder", f"data.root={classes}")
    assert check(*data).returncode == 1
    (classes / "b" / "0.png").write_bytes(b"")
    assert check(*data, f"data.exclude={listing}").returncode == 1
    assert listing.read_text() == "a/9.png\nb/0.png\n"
    assert check(*data, f"data.exclude={listing}").returncode == 0
    assert listing.read_text() == "a/9.png\nb/0.png\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "unseen check data=folder"),
        (("data=folder", "data.root=nowhere"), "data.root='nowhere' does not exist"),
        (("data=foldr",), "did you mean 'folder'"),
        (("data=collection",), "its images come from Python code"),
        (("data=folder", "data.root=images", "check.allow=[leek]"), "check.allow names 'leek'"),
    ],
)
def test_what_cannot_begin_says_why(
    check: Check, classes: Path, overrides: tuple[str, ...], message: str
) -> None:
    result = check(*overrides)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
