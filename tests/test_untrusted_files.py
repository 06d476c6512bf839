"""Whatever file a user may have been given is data: no door runs what is in it."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from unseen.config.export import weights_of
from unseen.data.cache import MemoryMapped
from unseen.deploy import bundle
from unseen.deploy.gallery import Gallery
from unseen.files import file_hash
from unseen.nn.weights import load_weights
from unseen.report.explorer import write_errors
from unseen.training.checkpoints import check_resumable, newest_of


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def payload(marker: Path) -> Payload:
    return Payload(marker)


def test_the_payload_works(payload: Payload, marker: Path) -> None:
    pickle.loads(pickle.dumps(payload))
    assert marker.is_dir()


def network() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=0)


def weights_of_pytorch(root: Path, payload: Payload) -> None:
    torch.save({"state_dict": network().state_dict(), "note": payload}, root / "weights.pth")
    load_weights(network(), str(root / "weights.pth"))


def weights_of_an_old_pytorch(root: Path, payload: Payload) -> None:
    torch.save({"note": payload}, root / "weights.pth", _use_new_zipfile_serialization=False)
    load_weights(network(), str(root / "weights.pth"))


def weights_that_are_a_pickle(root: Path, payload: Payload) -> None:
    (root / "weights.safetensors").write_bytes(pickle.dumps(payload))
    load_weights(network(), str(root / "weights.safetensors"))


def checkpoint(root: Path, payload: Payload) -> Path:
    """As `resume_from` and `unseen export` find it."""
    path = root / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": nn.Linear(1, 1).state_dict(), "callbacks": payload}, path)
    return path


def resume_from_a_file(root: Path, payload: Payload) -> None:
    check_resumable(nn.Linear(1, 1), checkpoint(root, payload))


def resume_from_the_last(root: Path, payload: Payload) -> None:
    checkpoint(root, payload)
    newest_of(root / "run", {"config": {}})


def export_of_a_run(root: Path, payload: Payload) -> None:
    checkpoint(root, payload)
    weights_of(root / "run", SimpleNamespace(chosen_epoch=None))  # type: ignore[arg-type]


def weights_of_a_bundle(root: Path, payload: Payload) -> None:
    backbone = {
        "model": "resnet10t", "image_size": 32, "taps": "late", "mean": None, "std": None, "options": None
    }  # fmt: skip
    parts = {
        "backbone": backbone,
        "fusion": {"_target_": "unseen.nn.fusion.LastMap", "_partial_": True},
        "embedding": {
            "size": 2,
            "normalize": True,
            "layer_norm": False,
            "readout": "projection",
            "whitening": None,
            "frozen_batch_norm": False,
        },
    }  # fmt: skip
    (root / bundle.WEIGHTS).write_bytes(pickle.dumps(payload))
    content: dict[str, Any] = {
        "format": bundle.FORMAT, "parts": parts, "facts": {},
        "files": {bundle.WEIGHTS: file_hash(root / bundle.WEIGHTS)},
    }  # fmt: skip
    content["hash"] = bundle._content_hash(content)
    (root / bundle.DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
    bundle.load(root)


def gallery(root: Path) -> Path:
    made = Gallery.create(root / "gallery", "b" * 64, 2)
    made.append(
        np.eye(2, dtype=np.float32), {"path": ["a", "b"], "label": ["x", "y"], "modified": ["1", "1"]}
    )
    (segment,) = (root / "gallery").glob("*.npy")
    return segment


def embeddings_of_a_gallery(root: Path, payload: Payload) -> None:
    segment = gallery(root)
    np.save(segment, np.array([payload, payload], dtype=object), allow_pickle=True)
    Gallery.open(root / "gallery")


def embeddings_that_are_a_pickle(root: Path, payload: Payload) -> None:
    gallery(root).write_bytes(pickle.dumps(payload))
    Gallery.open(root / "gallery")


def decoded_images(root: Path, payload: Payload) -> None:
    (root / "images.unseen").write_bytes(pickle.dumps(payload))
    MemoryMapped(root / "images.unseen")


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (weights_of_pytorch, r"weights='.*weights\.pth' could not be read as weights"),
        (weights_of_an_old_pytorch, r"weights='.*weights\.pth' could not be read as weights"),
        (weights_that_are_a_pickle, r"weights='.*weights\.safetensors' could not be read as weights"),
        (resume_from_a_file, r"resume_from=.*last\.ckpt: not a checkpoint of a run"),
        (resume_from_the_last, r"resume_from=last: none of the 1 checkpoints in .* can be read"),
        (export_of_a_run, r"run=.*: last\.ckpt is not a checkpoint of a run"),
        (weights_of_a_bundle, r"the weights do not fit their description"),
        (embeddings_of_a_gallery, r"gallery=.*: a part cannot be read .* Embed it again"),
        (embeddings_that_are_a_pickle, r"gallery=.*: a part cannot be read .* Embed it again"),
        (decoded_images, r"truncated, or something else"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_pickle_in_its_place_is_refused_and_does_not_run(
    door: Callable[[Path, Payload], None], words: str, tmp_path: Path, payload: Payload, marker: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        door(tmp_path, payload)
    assert not marker.exists()


def test_the_queries_of_a_run_are_arrays_alone(
    tmp_path: Path, payload: Payload, marker: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "queries.npz", ids=np.array([payload], dtype=object))
    with caplog.at_level(logging.WARNING):
        assert write_errors([SimpleNamespace(folder=tmp_path)]) == []  # type: ignore[list-item]
    assert "allow_pickle=False" in caplog.text
    assert not marker.exists()
