"""A folder belongs to one run, and one process at a time is at it."""

import pytest
from omegaconf import OmegaConf

from unseen.config.folder import check_folder, held
from unseen.config.values import UsageError
from unseen.sweep.lock import locked


def checked(folder, resume_from=None):
    check_folder(OmegaConf.create({"run_folder": str(folder), "resume_from": resume_from}))


@pytest.fixture
def used(tmp_path):
    """What a run left."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("record.json", "metrics.csv", "checkpoints/last.ckpt"):
        (tmp_path / "run" / name).write_text("x")
    return tmp_path / "run"


def test_a_free_folder_is_left_as_it_is(tmp_path):
    checked(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    (tmp_path / "config").mkdir()
    (tmp_path / "train.log").write_text("of a run that was refused")
    checked(tmp_path)


@pytest.mark.parametrize("trace", ["record.json", "metrics.csv", "checkpoints/last.ckpt"])
def test_a_folder_with_any_trace_of_a_run_is_refused(used, trace):
    for name in {"record.json", "metrics.csv", "checkpoints/last.ckpt"} - {trace}:
        (used / name).unlink()
    with pytest.raises(UsageError, match=f"{used}' belongs to a run already .*{trace.partition('/')[0]}"):
        checked(used)


def test_a_run_goes_on_in_its_own_folder_alone(used, tmp_path, monkeypatch):
    checked(used, "last")
    checked(used, used / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    checked(used, "run/checkpoints/last.ckpt")
    with pytest.raises(UsageError, match="resume_from=last, or name another folder"):
        checked(used, tmp_path / "other" / "checkpoints" / "last.ckpt")
    (used / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UsageError, match="Remove it, or name another folder"):
        checked(used, "last")


def test_the_second_of_two_runs_in_a_folder_is_refused_until_the_first_ends(tmp_path):
    with held(tmp_path):
        with pytest.raises(UsageError, match=r"process \d+ on .* is at it.*name|Name another folder"):
            checked(tmp_path)
        with pytest.raises(UsageError, match="Two runs cannot share a folder"), held(tmp_path):
            pass
    checked(tmp_path)
    with locked(tmp_path), pytest.raises(UsageError, match="is at it"):  # a job of a sweep
        checked(tmp_path)


def test_helpers_of_a_distributed_run_share_its_folder(used, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with locked(used), held(used):
        checked(used)


def test_what_is_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=rf"cannot write to '{folder}': '{tmp_path / 'file'}' is a file"):
            checked(folder)
    with pytest.raises(UsageError, match=r"cannot write to .*: File name too long"):
        checked(tmp_path / ("x" * 300))
