"""What a trained embedding is worth: on unseen classes, on held-out images of seen ones, and the gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unseen.data.module import DataModule
from unseen.data.split import matched_galleries
from unseen.evaluation.embed import EmbeddedImages, embed
from unseen.evaluation.probe import probe_accuracy
from unseen.nn.embedder import Embedder
from unseen.retrieval import RetrievalResult

Evaluate = Callable[..., RetrievalResult]


@dataclass(frozen=True)
class Measurement:
    """Everything that the record, the table and the pictures of a run need.

    Args:
        metrics: split → metric → value. The splits: `unseen` (the protocol's test set); `seen` (held-out
            images of training classes) and `unseen_matched` (unseen images), cut to equally many classes and
            images a class, so that both galleries are equally hard; `gap` (`seen` − `unseen_matched`); and
            `validation`, where the protocol holds out classes.
        unseen: the full result on unseen classes.
        queries: the unseen images that were searched with.
        gallery: the unseen images that were searched among; the same object when queries are the gallery.
    """

    metrics: dict[str, dict[str, float]]
    unseen: RetrievalResult
    queries: EmbeddedImages
    gallery: EmbeddedImages


def measure(embedder: Embedder, data: DataModule, evaluate: Evaluate, seed: int) -> Measurement:
    """Embed test and held-out images once, and evaluate both with the same function.

    Args:
        embedder: trained, on the device to use.
        data: gives the split and the images.
        evaluate: `(embeddings, labels, gallery=, gallery_labels=)` → result.
        seed: of the matched subset.
    """
    split = data.split
    queries = embed(embedder, data.loader(split.query), features=True)
    gallery = queries if split.query_is_gallery else embed(embedder, data.loader(split.gallery))
    if split.query_is_gallery:
        unseen = evaluate(queries.embeddings, queries.labels)
    else:
        unseen = evaluate(
            queries.embeddings,
            queries.labels,
            gallery=gallery.embeddings,
            gallery_labels=gallery.labels,
            ids=queries.ids,  # an image that is query and gallery is not its own neighbour
            gallery_ids=gallery.ids,
        )
    metrics = {"unseen": dict(unseen.metrics)}
    if len(split.validation):
        validation = embed(embedder, data.loader(split.validation))
        metrics["validation"] = dict(evaluate(validation.embeddings, validation.labels).metrics)
    metrics["unseen"]["probe_accuracy"] = probe_accuracy(queries.features, queries.labels)
    if len(split.held_out):
        metrics |= _gap(embedder, data, evaluate, queries, seed)
    return Measurement(metrics, unseen, queries, gallery)


def _gap(
    embedder: Embedder, data: DataModule, evaluate: Evaluate, unseen: EmbeddedImages, seed: int
) -> dict[str, dict[str, float]]:
    seen = embed(embedder, data.loader(data.split.held_out), features=True)
    rows = matched_galleries(seen.labels.numpy(), unseen.labels.numpy(), seed)
    if len(rows[0]) == 0:
        return {}
    metrics = {}
    for name, all_images, kept in zip(("seen", "unseen_matched"), (seen, unseen), rows, strict=True):
        images = all_images.select(torch.from_numpy(kept))
        metrics[name] = dict(evaluate(images.embeddings, images.labels).metrics)
        metrics[name]["probe_accuracy"] = probe_accuracy(images.features, images.labels)
    metrics["gap"] = {
        name: metrics["seen"][name] - value for name, value in metrics["unseen_matched"].items()
    }
    return metrics
