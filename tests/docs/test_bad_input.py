"""What the package says of bad input is what `docs/bad_input.md` says that it does.

The page is the table: a row that begins with a command is tried as it stands, any other by what `CASES` has
of its name. In what is said, `…` stands for any words.
"""

from __future__ import annotations

import pickle
import re
import shlex
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from unseen.config.command_line import check_overrides, check_single, load_config
from unseen.config.export import weights_of
from unseen.config.folder import TYPED, check_folder
from unseen.config.freeze import Freezer
from unseen.config.frozen import check_frozen
from unseen.data.acquire import archive
from unseen.data.acquire.download import RemoteFile
from unseen.data.images import read_image
from unseen.data.manifest import Manifest
from unseen.data.maps import kept_maps
from unseen.data.module import listed_paths
from unseen.data.sources import folder, glyphs, manifest_file, table
from unseen.data.split import fixed
from unseen.deploy.gallery import Gallery
from unseen.deploy.listing import list_images
from unseen.deploy.model import as_device
from unseen.deploy.results import check_table
from unseen.losses.adapter import MetricLoss, pair_loss
from unseen.nn.weights import load_weights
from unseen.sweep.lock import locked
from unseen.tracking.record import RunRecord
from unseen.training.checkpoints import check_resumable, newest_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad_input.md"
TRIED = PAGE.read_text(encoding="utf-8").partition("## The machine")[0]
ROWS = re.findall(r"^\| (.+?) \| `(.+)` \|$", TRIED, re.MULTILINE)

Case = Callable[[Path], Any]


def command(typed: str) -> Case:
    _, name, *words = shlex.split(typed.strip("`"))

    def case(root: Path) -> None:
        check_overrides(name, words)
        check_single(words)

    return case


def own_group(content: bytes) -> Case:
    def case(root: Path) -> None:
        (root / "loss").mkdir()
        (root / "loss" / "mine.yaml").write_bytes(content)
        check_overrides("train", ["loss=mine"], str(root))

    return case


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def a_table(text: str, encoding: str = "utf-8") -> Case:
    def case(root: Path) -> None:
        for name in ("a.png", "b.png"):
            picture(root / name)
        (root / "images.csv").write_bytes(text.encode(encoding))
        options: dict[str, Any] = {"root": None, "split": None, "train_fraction": 0.5, "seed": 0}
        table.read(root / "images.csv", listed="test", **options)

    return case


def a_tree(*images: str, **options: Any) -> Case:
    def case(root: Path) -> None:
        for name in images:
            if name.endswith("/"):
                (root / name).mkdir(parents=True)
            else:
                picture(root / name)
        given = {"split": "order", "train_fraction": 0.5, "seed": 0, "listed": "test"} | options
        folder.read(root, **given)

    return case


def file_as_root(root: Path) -> None:
    (root / "images").write_text("x")
    a_tree()(root / "images")


def an_image(content: bytes) -> Case:
    def case(root: Path) -> None:
        (root / "0.png").write_bytes(content)
        read_image(root / "0.png")

    return case


def half_an_image(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "0.png")
    (root / "0.png").write_bytes((root / "0.png").read_bytes()[:2000])
    read_image(root / "0.png")


def empty_box(root: Path) -> None:
    picture(root / "0.png")
    read_image(root / "0.png", np.array([3, 3, 3, 9]))


def saved_manifest(root: Path) -> None:
    (root / "manifest.csv").write_text("path,label\n")
    manifest_file.read(root / "manifest.csv", root=None)


def a_list_that_is_missing(root: Path) -> None:
    picture(root / "a" / "0.png")
    picture(root / "b" / "0.png")
    manifest = folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test")
    listed_paths(root / "none.txt", manifest)


def an_archive(root: Path) -> None:
    (root / "images.zip").write_bytes(b"<html>Please sign in</html>")
    archive.unpack(root / "images.zip", root / "images")


def archive_of_zeros(root: Path) -> None:
    with zipfile.ZipFile(root / "images.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("0.png", bytes(1_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "MODEST", 1000)
        archive.unpack(root / "images.zip", root / "images")


def chunk(content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def weights(content: dict[str, Any] | bytes | None) -> Case:
    def case(root: Path) -> None:
        path = root / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        load_weights(timm.create_model("resnet10t", num_classes=0), str(path))

    return case


def frozen(typed: str) -> Case:
    return lambda root: check_frozen(load_config(["backbone.frozen=true", typed]))


def maps_in_a_file(root: Path) -> None:
    (root / "caches").write_text("x")
    kept_maps(root / "caches", "key", np.array([0]), {"final": (1, 1, 1)}, lambda rows: [])


IDENTITY = {"split": "s", "manifest": "m", "config": {"seed": 0, "loss": "triplet", "data.image_size": 64}}


def checkpoint(saved: dict[str, Any], epoch: int = 0, most: int = 9) -> Case:
    """Of a run that had these things in another way."""

    def case(root: Path) -> None:
        learner = nn.Linear(1, 1)
        before = IDENTITY | saved | {"config": {**IDENTITY["config"], **saved.get("config", {})}}
        torch.save({"state_dict": learner.state_dict(), "unseen": before, "epoch": epoch}, root / "last.ckpt")
        now = IDENTITY | {"config": {**IDENTITY["config"], "trainer.max_epochs": most}}
        check_resumable(learner, root / "last.ckpt", now)

    return case


def broken_checkpoint(root: Path) -> None:
    (root / "last.ckpt").write_bytes(b"half")
    check_resumable(nn.Linear(1, 1), root / "last.ckpt")


def checkpoint_with_a_program(root: Path) -> None:
    state = nn.Linear(1, 1).state_dict()
    torch.save({"state_dict": state, "callbacks": Path("a class of its own")}, root / "last.ckpt")
    check_resumable(nn.Linear(1, 1), root / "last.ckpt")


def broken_run(root: Path) -> None:
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "last.ckpt").write_bytes(b"half")
    weights_of(root, SimpleNamespace(chosen_epoch=None))  # type: ignore[arg-type]


def run_without_its_best(root: Path) -> None:
    (root / "checkpoints").mkdir()
    torch.save({"epoch": 3, "state_dict": {}}, root / "checkpoints" / "last.ckpt")
    weights_of(root, SimpleNamespace(chosen_epoch=2))  # type: ignore[arg-type]


def pickled_gallery(root: Path) -> None:
    made = Gallery.create(root / "gallery", "b" * 64, 2)
    made.append(np.eye(2, dtype=np.float32), {name: ["a", "b"] for name in ("path", "label", "modified")})
    (segment,) = (root / "gallery").glob("*.npy")
    segment.write_bytes(pickle.dumps(["no array"]))
    Gallery.open(root / "gallery")


def checkpoint_of_other_weights(root: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, root / "last.ckpt")
    check_resumable(nn.Linear(1, 1), root / "last.ckpt")


def only_broken_checkpoints(root: Path) -> None:
    (root / "run" / "checkpoints").mkdir(parents=True)
    (root / "run" / "checkpoints" / "last.ckpt").write_bytes(b"half")
    newest_of(root / "run", IDENTITY)


def checked(folder_of_run: Path, named: str = TYPED) -> None:
    check_folder(OmegaConf.create({"run_folder": str(folder_of_run), "resume_from": None}), named)


def used_folder(root: Path, named: str = TYPED) -> None:
    (root / "checkpoints").mkdir()
    for name in ("record.json", "metrics.csv", "checkpoints/last.ckpt"):
        (root / name).write_text("x")
    checked(root, named)


def folder_in_use(root: Path) -> None:
    with locked(root):
        checked(root)


def file_in_the_way(root: Path) -> None:
    (root / "runs").write_text("x")
    checked(root / "runs" / "first")


def broken_record(root: Path) -> None:
    (root / "record.json").write_text("{")
    RunRecord.load(root / "record.json")


class Unreduced(nn.Module):
    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return embeddings.sum(1)


def loss_without_a_mean(root: Path) -> None:
    MetricLoss(Unreduced())(torch.ones(4, 2), torch.arange(4), torch.arange(4))


def one_class(root: Path) -> None:
    pair_loss(Unreduced(), None, None, 0.0, num_classes=1, embedding_size=2)


def one_image_each(root: Path) -> None:
    for name in ("a/0.png", "b/0.png", "c/0.png", "d/0.png"):
        picture(root / name)
    manifest = folder.read(root, split="order", train_fraction=0.5, seed=0, listed="test")
    fixed(manifest, seed=0, held_out_fraction=0).check_answerable(test=True)


def owls_as_letters(root: Path) -> None:
    picture(root / "owls" / "0.png")
    load = {"train_scripts": ["Latin"], "test_scripts": ["Greek"], "images_per_face": 1}
    glyphs.read(root, size=48, jitter=1.0, seed=0, **load)


def images_that_are_gone(root: Path) -> None:
    picture(root / "gone" / "a.png")
    labels = np.array([0])
    manifest = Manifest(root / "gone", ("a.png",), labels, ("a",), np.array(["test"]))
    manifest.save(root / "manifest.csv")
    shutil.rmtree(root / "gone")
    list_images(root / "manifest.csv")


CASES: dict[str, Case] = {
    "a password in the settings of a sweep": lambda root: Freezer().freeze(
        ["+check.at=http://me:pw@host"], root
    ),
    "an empty file": own_group(b""),
    "a list in place of keys": own_group(b"- a\n"),
    "broken YAML": own_group(b"a: [1\nb: 2\n"),
    "a file in Latin-1": own_group("# für\n".encode("latin-1")),
    "a folder that is not there": lambda root: check_overrides("train", [], str(root / "nowhere")),
    "a loss from a package that is not trusted": own_group(b"function: {_target_: os.system}"),
    "a number that a key cannot take": own_group(b"# @package _global_\nseed: 1.5"),
    "a handler of logging that starts a program": own_group(
        b"# @package _global_\nhydra: {job_logging: {handlers: {file: {class: subprocess.Popen}}}}"
    ),
    "a root that is not there": lambda root: a_tree()(root / "nowhere"),
    "a file as root": file_as_root,
    "a root without class folders": a_tree(),
    "a class folder without images": a_tree("a/0.png", "b/"),
    "one class alone": a_tree("a/0.png"),
    "a class that trains and tests": a_tree("train/a/0.png", "test/a/0.png", split="folders"),
    "a tree that is divided already": a_tree("train/a/0.png", "test/b/0.png"),
    "a list of classes that is not there": a_tree("a/0.png", "b/0.png", split="unseen.txt"),
    "a folder name in another encoding": a_tree("b/0.png", "a\udce9/0.png"),
    "test classes of one image each": one_image_each,
    "your images as the root of the letters that are drawn": owls_as_letters,
    "no such table": lambda root: table.read(
        root / "none.csv", root=None, split=None, train_fraction=0.5, seed=0, listed="test"
    ),
    "an empty table": a_table(""),
    "a header alone": a_table("path,label\n"),
    "no column of paths": a_table("file,label\na.png,x\n"),
    "a table with semicolons": a_table("path;label\na.png;x\n"),
    "a column that stands twice": a_table("path,label,label\na.png,x,x\n"),
    "a misspelt column": a_table("path,label,rolle\na.png,x,train\n"),
    "a row without a label": a_table("path,label\na.png,\n"),
    "a row with more fields": a_table("path,label\na.png,x,1\n"),
    "an unknown role": a_table("path,label,role\na.png,x,exam\n"),
    "a listed image that is missing": a_table("path,label\na.png,x\nc.png,y\n"),
    "an image that stands twice": a_table("path,label\na.png,x\nb.png,y\na.png,x\n"),
    "a box with half a pixel": a_table(
        "path,label,left,top,right,bottom\na.png,x,0,0,1.5,2\nb.png,y,0,0,1,1\n"
    ),
    "an open quote": a_table('path,label\n"a.png,x\n'),
    "a table in UTF-16": a_table("path,label\na.png,x\nb.png,y\n", "utf-16"),
    "a table in Latin-1": a_table("path,label\na.png,é\nb.png,y\n", "latin-1"),
    "a manifest that was cut": saved_manifest,
    "a list of images to leave out that is not there": a_list_that_is_missing,
    "an archive that is a web page": an_archive,
    "an archive that would fill the disk": archive_of_zeros,
    "a file to download that leaves its folder": lambda root: RemoteFile("../images.zip"),
    "an image that is none": an_image(b"no picture"),
    "an empty image": an_image(b""),
    "half an image": half_an_image,
    "an image that is not there": lambda root: read_image(root / "0.png"),
    "an image of too many pixels": an_image(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT")
    ),
    "a box outside its image": empty_box,
    "no such weights": weights(None),
    "weights that are none": weights(b"no weights"),
    "weights that hold a program": weights({"layer.weight": Path("a class of its own")}),
    "weights of another network": weights({"layer.weight": torch.ones(3)}),
    "a checkpoint that is not there": lambda root: check_resumable(nn.Linear(1, 1), root / "last.ckpt"),
    "a broken checkpoint": broken_checkpoint,
    "a checkpoint that holds a program": checkpoint_with_a_program,
    "a checkpoint of another network": checkpoint_of_other_weights,
    "a checkpoint of another seed": checkpoint({"config": {"seed": 1}}),
    "a checkpoint of another loss": checkpoint({"config": {"loss": "contrastive"}}),
    "a checkpoint of another image size": checkpoint({"config": {"data.image_size": 32}}),
    "a checkpoint of other images": checkpoint({"manifest": "n"}),
    "a checkpoint of another split": checkpoint({"split": "t"}),
    "a checkpoint of a later epoch": checkpoint({}, epoch=3, most=2),
    "no checkpoint that is whole": only_broken_checkpoints,
    "a run to export whose checkpoint is broken": broken_run,
    "a run to export whose best epoch was removed": run_without_its_best,
    "a gallery whose embeddings are a pickle": pickled_gallery,
    "no run with these settings": lambda root: newest_of(root / "run", IDENTITY),
    "a frozen backbone that is to learn later": frozen("optimizer.frozen_backbone_epochs=2"),
    "a frozen backbone with a learning rate": frozen("optimizer.learning_rates.backbone=1e-4"),
    "a frozen backbone of which a part is to learn": frozen("trainable=norms"),
    "feature maps in a folder that is a file": maps_in_a_file,
    "a folder that holds a run": used_folder,
    "the same, of `unseen.fit(folder=…)`": lambda root: used_folder(root, "folder"),
    "a folder in which a run is under way": folder_in_use,
    "a file where a folder should be": file_in_the_way,
    "a name that is too long": lambda root: checked(root / ("x" * 300)),
    "a record that is none": broken_record,
    "a loss that gives no scalar": loss_without_a_mean,
    "one training class": one_class,
    "a device that this machine lacks": lambda root: as_device("cuda:99"),
    "a device that there is not": lambda root: as_device("gpu0"),
    "a manifest whose images are gone": images_that_are_gone,
    "a table of another kind": lambda root: check_table(Path("found.xlsx")),
}


def test_every_case_has_its_row_and_every_row_its_case() -> None:
    assert [what for what, _ in ROWS if not what.startswith("`")] == list(CASES)


@pytest.mark.parametrize(("what", "said"), ROWS, ids=[what for what, _ in ROWS])
def test_the_package_says_what_the_page_says(what: str, said: str, tmp_path: Path) -> None:
    case = command(what) if what.startswith("`") else CASES[what]
    with pytest.raises((ValueError, OSError)) as refused:
        case(tmp_path)
    pattern = ".*".join(map(re.escape, said.split("…")))
    assert re.fullmatch(pattern, str(refused.value), re.DOTALL), str(refused.value)
