"""The built wheel finds its configuration without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unseen.deploy.server.app import PAGE
from unseen.report.page.write import LIBRARIES, SCRIPTS, STYLES

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_an_installed_wheel_trains_in_an_empty_folder(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            tmp_path,
            CHECKOUT,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("unseen_dml-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "unseen/conf/train.yaml" in archive.namelist()
        page = {name for name in archive.namelist() if name.startswith("unseen/report/page/")}
        assert {f"unseen/report/page/{name}" for name in (*STYLES, *LIBRARIES, *SCRIPTS)} <= page
        assert "unseen/report/page/template/page.html" in page
        assert "unseen/report/page/vendor/bundled.LICENSES" in page
        served = {f"unseen/deploy/server/page/{name}" for name, _ in PAGE.values()}
        assert served <= set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "unseen", "train", "trainer.max_epochs=1", "+trainer.limit_train_batches=2",
         "data.train_scripts=[Armenian]", "data.test_scripts=[Lao]", "pictures=false", "callbacks=quiet"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}/installed", "UNSEEN_CACHE": f"{tmp_path}/cache"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [record] = work.glob("runs/*/record.json")
    assert '"recall_at_1"' in record.read_text()
    imported = subprocess.run(
        [sys.executable, "-c", "import unseen; print(unseen.__file__)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "installed") in imported.stdout
