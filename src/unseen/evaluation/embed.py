"""One pass over images: embeddings, labels, ids, and features where a probe or a readout wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unseen.data.batch import Batch
from unseen.nn.allocator import keep_freed_memory
from unseen.nn.backbone import FeatureMaps
from unseen.nn.embedder import Embedded
from unseen.nn.modes import evaluating


@dataclass(frozen=True)
class EmbeddedImages:
    """`N` embedded images, in float32.

    Args:
        embeddings: `(N, d)`, where they are searched: on the embedder's CUDA device, else on the CPU.
        features: `(N, D)` on the CPU; `(N, 0)` when none were asked for.
        labels: `(N,)` int64 on the CPU, the manifest's.
        ids: `(N,)` int64 on the CPU, rows of the manifest.
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

    def union(self, other: EmbeddedImages) -> EmbeddedImages:
        """These images and those of another set that are not among them."""
        new = other.select((~torch.isin(other.ids, self.ids)).nonzero().squeeze(1))
        pairs = zip(self._columns(), new._columns(), strict=True)
        return EmbeddedImages(*(torch.cat(pair) for pair in pairs))

    def cpu(self) -> EmbeddedImages:
        """The same on the CPU."""
        return EmbeddedImages(*(column.cpu() for column in self._columns()))

    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.embeddings, self.features, self.labels, self.ids


def fused_features(embedded: Embedded) -> Tensor:
    """`(B, D)`, what a probe looks at."""
    return embedded.fused.features


@torch.inference_mode()
def embed(
    embedder: nn.Module, batches: Iterable[Batch], features: Callable[[Embedded], Tensor] | None = None
) -> EmbeddedImages:
    """Embed every image, in evaluation mode and without autocast.

    Validation and measurement thereby have one precision, whatever training ran in. The mode of each module
    is restored.

    Args:
        embedder: an `Embedder`, or any module that gives an `Embedded`, on the device to use.
        batches: images, or their feature maps, in order, as a loader without shuffling gives them.
        features: what is kept beside the embeddings, such as `fused_features`.

    Raises:
        ValueError: there is no image.
    """
    device = next(embedder.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    searched_on = device if device.type == "cuda" else torch.device("cpu")  # MPS has no float64
    columns: list[tuple[Tensor, ...]] = []
    with evaluating(embedder), torch.autocast(device.type, enabled=False):
        for batch in batches:
            embedded = _embedded(embedder, batch, device)
            kept = features(embedded) if features else embedded.embedding[:, :0]
            columns.append(
                (embedded.embedding.float().to(searched_on), kept.float().cpu(), batch.labels, batch.ids)
            )
    if not columns:
        raise ValueError("There are no images to embed: the rows are empty.")
    return EmbeddedImages(*(torch.cat(column) for column in zip(*columns, strict=True)))


def _embedded(embedder: nn.Module, batch: Batch, device: torch.device) -> Embedded:
    if batch.images is not None:
        return embedder(batch.images.to(device, non_blocking=True))
    maps = FeatureMaps.of([one.to(device, non_blocking=True) for one in batch.maps])
    return embedder.embed_maps(maps)  # type: ignore[operator]
