"""What a frozen backbone makes of each image, computed once and kept for all runs that have both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from torch import Tensor

from unseen.data.cache import LONG
from unseen.data.maps import (
    VERSION,
    Rows,
    Shapes,
    StoredMaps,
    bytes_of,
    check_room,
    in_units,
    kept_maps,
    missing_bytes,
)
from unseen.data.module import DataModule
from unseen.nn.backbone import Backbone
from unseen.nn.modes import evaluating

FOLDER = "maps"
"""Of feature maps, in the folder of all caches."""


def keep_feature_maps(
    backbone: Backbone, data: DataModule, *, cache_dir: Path, device: torch.device, test: bool
) -> None:
    """Compute the maps of all images that a run needs, unless they are there, and let its batches carry them.

    Images are prepared as for evaluation, and maps computed in float32. Training classes and test classes
    have a file each, so that runs that do not look at test classes share theirs with those that do.

    Args:
        backbone: frozen.
        data: gives the images; batches carry maps from then on.
        cache_dir: of all caches.
        device: that computes.
        test: whether the test classes are needed.

    Raises:
        MapsError: the maps cannot be kept.
    """
    split = data.split
    seen = np.unique(np.concatenate([split.train, split.held_out, split.validation]))
    parts = [seen, np.union1d(split.query, split.gallery)] if test else [seen]
    names = list(dict.fromkeys(backbone.map_names))
    backbone.to(device)
    data.maps = None
    folder = cache_dir.expanduser() / FOLDER
    shapes = _shapes(backbone, data, names)
    _say(parts, shapes, folder)
    keys = [_key(backbone, data, rows) for rows in parts]
    missing = [missing_bytes(folder, key, len(rows), shapes) for key, rows in zip(keys, parts, strict=True)]
    check_room(folder, sum(missing))

    def compute(chosen: Rows) -> Iterator[Sequence[Tensor]]:
        batches = data.loader(chosen)
        for batch in track(batches, "Computing feature maps", disable=len(chosen) < LONG):
            yield _maps(backbone, batch.images, names)

    files = [kept_maps(folder, key, rows, shapes, compute) for key, rows in zip(keys, parts, strict=True)]
    data.maps = StoredMaps(files, backbone.map_names)


def _key(backbone: Backbone, data: DataModule, rows: Rows) -> str:
    parts = (str(VERSION), backbone.fingerprint(), data.fingerprint(rows))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


@torch.inference_mode()
def _maps(backbone: Backbone, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Of each name `(B, C, H, W)`, by a backbone in evaluation mode and float32."""
    device = backbone.mean.device
    with evaluating(backbone), torch.autocast(device.type, enabled=False):
        taps, final = backbone(images.to(device, non_blocking=True))
    found = dict(zip(backbone.map_names, [*taps, final], strict=True))
    return [found[name] for name in names]


def _shapes(backbone: Backbone, data: DataModule, names: Sequence[str]) -> Shapes:
    """Seen on one image."""
    [batch] = data.loader(data.split.train[:1])
    maps = _maps(backbone, batch.images, names)
    return {name: (one.shape[1], one.shape[2], one.shape[3]) for name, one in zip(names, maps, strict=True)}


@rank_zero_only
def _say(parts: Sequence[Rows], shapes: Shapes, folder: Path) -> None:
    count = sum(map(len, parts))
    print(
        f"backbone.frozen=true: feature maps of {count:,} images, prepared as for evaluation (nothing is "
        f"augmented), take {in_units(bytes_of(count, shapes))} in {folder}; they are computed once.",
        flush=True,
    )
