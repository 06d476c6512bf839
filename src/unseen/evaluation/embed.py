"""One pass over images: embeddings, labels, ids, and the fused features where a probe wants them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unseen.data.batch import Batch
from unseen.nn.embedder import Embedder


@dataclass(frozen=True)
class EmbeddedImages:
    """`N` embedded images, on the CPU in float32.

    Args:
        embeddings: `(N, d)`.
        features: fused features `(N, D)`; `(N, 0)` when they were not asked for.
        labels: `(N,)` int64, the manifest's.
        ids: `(N,)` int64, rows of the manifest.
    """

    embeddings: Tensor
    features: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: Tensor) -> EmbeddedImages:
        """The images at some positions, in that order."""
        return EmbeddedImages(self.embeddings[keep], self.features[keep], self.labels[keep], self.ids[keep])


@torch.inference_mode()
def embed(embedder: Embedder, batches: Iterable[Batch], features: bool = False) -> EmbeddedImages:
    """Embed every image, in evaluation mode and full precision; the embedder's mode is restored.

    Args:
        embedder: on the device to use.
        batches: images in order, as a loader without shuffling gives them.
        features: keep the fused features too.

    Raises:
        ValueError: there is no image.
    """
    was_training = embedder.training
    device = next(embedder.parameters()).device
    embedder.eval()
    columns: list[tuple[Tensor, ...]] = []
    try:
        for batch in batches:
            embedded = embedder(batch.images.to(device, non_blocking=True))
            kept = embedded.fused.features if features else embedded.fused.features[:, :0]
            columns.append((embedded.embedding.float().cpu(), kept.float().cpu(), batch.labels, batch.ids))
    finally:
        embedder.train(was_training)
    if not columns:
        raise ValueError("There are no images to embed: the rows are empty.")
    return EmbeddedImages(*(torch.cat(column) for column in zip(*columns, strict=True)))
