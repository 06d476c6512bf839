"""The pictures of a run: chooses what to show, fetches it, and leaves the drawing to `pictures`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unseen import pictures
from unseen.data.module import DataModule
from unseen.evaluation.measure import Measurement
from unseen.nn.embedder import Embedder
from unseen.tracking.table import metric_title

NEIGHBOURS = 8
ATTENTION_ROWS = 6
PROJECTED, SPRITE = 500, 48
"""Images that TensorBoard's projector gets, and pixels of their sides."""


def draw(
    folder: Path, embedder: Embedder, data: DataModule, measured: Measurement, seed: int
) -> dict[str, Path]:
    """Draw every picture that the run has material for.

    Args:
        folder: gets one PNG for each.
        embedder: trained.
        data: gives images and class names.
        measured: the result on unseen classes.
        seed: of the embedding map.

    Returns:
        name → path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "neighbours": _neighbours(folder / "neighbours.png", data, measured),
        "classes": _classes(folder / "classes.png", data, measured),
        "attention": _attention(folder / "attention.png", embedder, data, measured),
    }
    if len(measured.queries) >= 3:
        drawn["embedding_map"] = _embedding_map(folder / "embedding_map.png", data, measured, seed)
    return {name: path for name, path in drawn.items() if path is not None}


def projected(data: DataModule, measured: Measurement) -> tuple[np.ndarray, list[str], torch.Tensor]:
    """What an explorer of embeddings shows: whole classes where not all images have room.

    Returns:
        embeddings `(M, d)`, their class names, and their images `(M, 3, s, s)` in [0, 1].
    """
    queries = measured.queries
    rows = pictures.choose_images(queries.labels.numpy(), PROJECTED)
    images = np.stack([data.image(int(queries.ids[row])) for row in rows]).transpose(0, 3, 1, 2)
    sprites = torch.nn.functional.interpolate(
        torch.from_numpy(images).float() / 255, (SPRITE, SPRITE), mode="area"
    )
    return queries.embeddings[rows].numpy(), [_name(data, queries.labels[row]) for row in rows], sprites


def _chosen(measured: Measurement, count: int) -> np.ndarray:
    # One that nothing could answer counts nowhere, and is no failure.
    answerable = np.flatnonzero(measured.unseen.relevant.numpy() > 0)
    hits, labels = measured.unseen.hits.numpy(), measured.queries.labels.numpy()
    return answerable[pictures.choose_queries(hits[answerable], labels[answerable], count)]


def _neighbours(path: Path, data: DataModule, measured: Measurement) -> Path:
    rows = _chosen(measured, 8)
    # A small gallery has fewer neighbours than there are places.
    shown = min(NEIGHBOURS, int((measured.unseen.neighbours.positions[rows] >= 0).sum(1).min()))
    positions = measured.unseen.neighbours.positions[rows, :shown]
    images = [[data.image(int(measured.gallery.ids[p])) for p in line] for line in positions]
    return pictures.retrieval_sheet(
        path,
        [data.image(int(measured.queries.ids[row])) for row in rows],
        [_name(data, measured.queries.labels[row]) for row in rows],
        images,
        [[_name(data, measured.gallery.labels[p]) for p in line] for line in positions],
        measured.unseen.neighbours.similarities[rows, :shown].numpy(),
        measured.unseen.hits[rows, :shown].numpy(),
    )


def _classes(path: Path, data: DataModule, measured: Measurement) -> Path:
    names = [_name(data, label) for label in measured.unseen.classes]
    values = measured.unseen.per_class
    metric = "recall_at_1" if "recall_at_1" in values else next(iter(values))
    return pictures.class_strip(path, values[metric].numpy(), names, metric_title(metric))


def _embedding_map(path: Path, data: DataModule, measured: Measurement, seed: int) -> Path:
    queries = measured.queries
    rows = pictures.choose_images(queries.labels.numpy())
    points = pictures.project(queries.embeddings[rows].numpy(), seed)
    labels = queries.labels[rows].numpy()
    return pictures.embedding_map(
        path,
        points,
        labels,
        data.manifest.class_names,
        lambda point: data.image(int(queries.ids[rows[point]])),
    )


@torch.inference_mode()
def _attention(path: Path, embedder: Embedder, data: DataModule, measured: Measurement) -> Path | None:
    rows = _chosen(measured, ATTENTION_ROWS)
    images = [data.image(int(measured.queries.ids[row])) for row in rows]
    device = next(embedder.parameters()).device
    batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()).to(device)
    attention = embedder.eval()(batch).fused.attention
    if not attention:
        return None
    names = [_name(data, measured.queries.labels[row]) for row in rows]
    maps = [tap.float().cpu().numpy() for tap in attention]
    return pictures.attention_overlays(path, images, names, maps, embedder.backbone.tap_names)


def _name(data: DataModule, label: torch.Tensor) -> str:
    return data.manifest.class_names[int(label)]
