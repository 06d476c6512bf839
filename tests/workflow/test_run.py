"""What a long run looks at before it starts, and when it need not look again."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities import rank_zero_only

from unseen.config.build import build, plain
from unseen.config.command_line import load_config
from unseen.data.sources import folder
from unseen.data.split import fixed, holdout
from unseen.training.progress import quiet
from unseen.workflow.preflight import is_long as run_is_long
from unseen.workflow.preflight import look_before
from unseen.workflow.run import execute

Look = Callable[..., None]


@pytest.fixture
def tree(coloured_tree: Path, tmp_path: Path) -> Path:
    """Class 0 trains and class 7 tests; an image is in both."""
    shutil.copytree(coloured_tree, tmp_path / "tree")
    shutil.copy(tmp_path / "tree" / "class 0" / "0.png", tmp_path / "tree" / "class 7" / "again.png")
    return tmp_path / "tree"


@pytest.fixture
def look(tmp_path: Path) -> Look:
    def look_at(root: Path, *overrides: str, protocol: Callable[..., object] = fixed) -> None:
        own = ("data=folder", f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}", "check_from=0")
        config = load_config([*own, *overrides], run_folder=str(tmp_path / "run"))
        manifest = folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test")
        split = protocol(manifest, seed=0, held_out_fraction=0.15)
        data = SimpleNamespace(manifest=manifest, split=split, excluded=(), reads_files=True)
        look_before(
            data,  # type: ignore[arg-type]
            rules=plain(config.check),
            crop_to_box=config.data.crop_to_box,
            cache_dir=Path(config.data.cache_dir),
            report_folder=tmp_path / "run" / "check",
            check_from=config.check_from,
            epochs=config.trainer.max_epochs,
        )

    return look_at


LEAK = "in training and in test"


def test_what_was_allowed_once_is_not_allowed_for_good(tree: Path, look: Look) -> None:
    look(tree, "check.allow=[leakage]")
    with pytest.raises(ValueError, match=LEAK):
        look(tree)


def test_another_folder_with_the_same_names_is_looked_at(tree: Path, tmp_path: Path, look: Look) -> None:
    sound = tmp_path / "sound"
    shutil.copytree(tree, sound)
    shutil.copy(sound / "class 7" / "0.png", sound / "class 7" / "again.png")
    look(sound)
    with pytest.raises(ValueError, match=LEAK):
        look(tree)


@pytest.mark.slow
def test_files_that_changed_since_are_looked_at_again_and_others_are_not(
    tree: Path, look: Look, tmp_path: Path
) -> None:
    (tree / "class 7" / "again.png").unlink()
    look(tree)
    [report] = (tmp_path / "cache" / "checked").glob("*/report.json")
    written = report.stat().st_mtime_ns
    look(tree)
    assert report.stat().st_mtime_ns == written
    shutil.copy(tree / "class 0" / "0.png", tree / "class 7" / "0.png")
    with pytest.raises(ValueError, match=LEAK):
        look(tree)


def test_images_that_validate_must_not_be_trained_on(coloured_tree: Path, tmp_path: Path, look: Look) -> None:
    halves = functools.partial(holdout, class_fraction=0.5)
    manifest = folder.read(coloured_tree, split="order", train_fraction=0.5, seed=0, listed="test")
    parts = halves(manifest, seed=0, held_out_fraction=0.0).parts
    trained, validates = (list(parts).index(part) for part in ("train", "validation"))
    shutil.copytree(coloured_tree, tmp_path / "tree")
    shutil.copy(*(tmp_path / "tree" / manifest.paths[row] for row in (trained, validates)))
    look(tmp_path / "tree")
    with pytest.raises(ValueError, match="in training and in validation"):
        look(tmp_path / "tree", protocol=halves)


def test_only_the_first_of_several_processes_looks(
    tree: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    look(tree)


@pytest.mark.parametrize(
    ("check_from", "max_epochs", "is_long"),
    [
        (1000, 9, False),
        (1000, 10, True),
        (1000, -1, True),
        (1000, None, True),
        (1000, 0, False),
        (0, 0, True),
        (None, -1, False),
    ],
)
def test_a_run_is_long_by_the_images_it_reads_and_where_it_has_no_end(
    check_from: int | None, max_epochs: int | None, is_long: bool
) -> None:
    assert run_is_long(check_from, max_epochs, images=100) == is_long


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_without_a_step_says_that_it_trained_nothing(
    tiny_run: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    none = [
        "+trainer.limit_train_batches=0",
        "trainer.max_epochs=1",
        "evaluation.test=false",
        "pictures=false",
    ]
    config = load_config([*tiny_run, *none, "protocol=holdout", "pictures=false"], run_folder=str(tmp_path))
    with quiet():
        execute(build(config))
    assert "Not one step was made (see trainer.limit_train_batches" in caplog.text
