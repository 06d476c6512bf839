"""`unseen prepare`: from a server on loopback to a data set that is counted, and what stops it."""

from __future__ import annotations

import http.server
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image


def prepare(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unseen.apps.prepare", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def products(tmp_path: Path) -> Iterator[str]:
    """The address of a server of a tiny Stanford Online Products."""
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "products.zip", "w") as archive:
        for side, product in (("train", 1), ("test", 2)):
            lines = ["image_id class_id super_class_id path"]
            for image in range(2):
                path = f"chair_final/{product}_{image}.JPG"
                content = io.BytesIO()
                Image.new("RGB", (8, 8), (product, image, 0)).save(content, "JPEG")
                archive.writestr(f"Stanford_Online_Products/{path}", content.getvalue())
                lines.append(f"{image + 1} {product} 1 {path}")
            archive.writestr(f"Stanford_Online_Products/Ebay_{side}.txt", "\n".join(lines))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/products.zip"
        server.shutdown()


@pytest.mark.slow
def test_gets_a_data_set_and_then_has_nothing_to_do(products: str, tmp_path: Path) -> None:
    overrides = (
        "data=sop",
        "data.root=here",
        "data.expected=null",
        f"data.download.files=[{{name:products.zip,url:'{products}'}}]",
    )
    first = prepare(tmp_path, *overrides)
    assert first.returncode == 0, first.stderr
    assert "train: 2 images of 1 classes" in first.stdout
    assert (tmp_path / "here" / "Stanford_Online_Products" / "Ebay_train.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"served", "here"}
    (tmp_path / "served" / "products.zip").unlink()
    again = prepare(tmp_path, *overrides)
    assert (again.returncode, again.stdout) == (0, first.stdout)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "unseen prepare data=cub"),
        (("data=inshop",), "3 of 3 files have no public address. Get them from https://mmlab"),
        (("data=csv", "data.path=x.csv"), "nothing to download"),
        (("data=glyphs",), "nothing to download"),
        (
            (
                "data=cub",
                "data.download.files=[{name:x.tgz,url:'http://127.0.0.1:9/x'}]",
                "download.attempts=1",
            ),
            "no connection",
        ),
    ],
)
def test_what_cannot_be_had_says_why(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    result = prepare(tmp_path, *overrides)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
