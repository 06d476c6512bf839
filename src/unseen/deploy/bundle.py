"""One folder that holds all of a model: weights, how it is built, how images are prepared, what it is worth.

No pickle: weights are safetensors, all else is JSON. Every file is named with its hash; what changed is
refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from unseen.deploy.card import model_card
from unseen.deploy.model import Model
from unseen.deploy.parts import check, made
from unseen.files import file_hash
from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder

FORMAT = 1
"""Raised when an older version could not read what is written."""
ELSEWHERE = ("checkpoint_path", "cache_dir")
"""Options by which timm reads files that are not the bundle's; timm 1.0.12 runs pickles in them."""
WEIGHTS, DESCRIPTION, CARD = "weights.safetensors", "bundle.json", "README.md"


def save(model: Model, parts: Mapping[str, Any], folder: str | Path) -> Path:
    """Write a bundle; there is a whole one or none.

    Args:
        model: what is deployed, with its facts.
        parts: how it is built, as plain data: `backbone`, `fusion`, `embedding` and `preparation`.
        folder: must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        ValueError: a part is not of this package, or the folder holds something.
    """
    folder = Path(folder).expanduser()
    described = {name: dict(parts[name]) for name in ("backbone", "fusion", "embedding", "preparation")}
    for name in ("fusion", "preparation"):
        check(described[name])
    described["backbone"] = _as_built(model.embedder.backbone, described["backbone"])
    with _whole(folder) as temporary:
        state = {
            name: value.detach().cpu().contiguous() for name, value in model.embedder.state_dict().items()
        }
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CARD).write_text(model_card(model.facts, model.size), encoding="utf-8")
        files = {name: file_hash(temporary / name) for name in (WEIGHTS, CARD)}
        content = {
            "format": FORMAT,
            "unseen": version("unseen-dml"),
            "parts": described,
            "facts": model.facts,
            "files": files,
        }
        content["hash"] = _content_hash(content)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model of a bundle, in evaluation mode.

    Args:
        folder: that `save` or `unseen export` wrote.
        device: where it computes.

    Raises:
        ValueError: it is no bundle, one of a later format, or a file of it has changed; or this machine has
            no such device.
    """
    folder = Path(folder).expanduser()
    content = _read(folder)
    parts = content["parts"]
    described = {**parts["backbone"], "options": _own(parts["backbone"].get("options"))}
    embedder = Embedder(
        Backbone(**described, weights="none", frozen=False),
        made(parts["fusion"]),
        **parts["embedding"],
    )
    try:
        embedder.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"'{folder}': the weights do not fit their description ({error}).") from error
    preparation: nn.Module = made(parts["preparation"])
    facts = {**content["facts"], "bundle": content["hash"]}
    return Model(embedder.requires_grad_(False).eval(), preparation, facts).to(device)


def _as_built(backbone: Backbone, described: Mapping[str, Any]) -> dict[str, Any]:
    """What the backbone turned out to be: defaults of another version must not change it."""
    return {
        "model": described["model"],
        "image_size": backbone.image_size,
        "taps": list(backbone.tap_names),
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
        "options": _own(described.get("options")),
    }


def _own(options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Options of a network whose weights are in the bundle."""
    return options and {name: value for name, value in options.items() if name not in ELSEWHERE}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted, files, form = content["hash"], dict(content["files"]), content["format"]
    except FileNotFoundError as error:
        raise ValueError(f"'{folder}' is no bundle: there is no {DESCRIPTION} in it.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is not the description of a bundle: {error!r}.") from error
    if form != FORMAT:
        raise ValueError(f"'{folder}' is a bundle of format {form}; this version of unseen reads {FORMAT}.")
    if _content_hash(content) != wanted:
        raise ValueError(f"'{path}' has changed since the bundle was written. Get the bundle again.")
    for name, known in files.items():
        if name not in (WEIGHTS, CARD) or not (folder / name).is_file() or file_hash(folder / name) != known:
            raise ValueError(
                f"'{folder / name}' is missing or has changed since the bundle was written. "
                "Get the bundle again."
            )
    if WEIGHTS not in files:
        raise ValueError(f"'{path}' names no weights. Get the bundle again.")
    return content


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside it, which takes its place when the block succeeds."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"'{folder}' holds something already. Name a new folder, or remove it first.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of the same number that died
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content_hash(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "hash"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
