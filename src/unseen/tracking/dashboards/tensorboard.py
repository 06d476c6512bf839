"""TensorBoard: pictures in its images tab, and embeddings in its projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image

from unseen.tracking.dashboards.loggers import log_pictures_one, log_projection_one


@log_pictures_one.register
def _(logger: TensorBoardLogger, pictures: Mapping[str, Path]) -> None:
    for name, path in pictures.items():
        pixels = np.asarray(Image.open(path).convert("RGB"))
        logger.experiment.add_image(f"pictures/{name}", pixels, dataformats="HWC")


@log_projection_one.register
def _(logger: TensorBoardLogger, embeddings: NDArray[np.floating], names: Sequence[str], images: Any) -> None:
    logger.experiment.add_embedding(embeddings, metadata=list(names), label_img=images, tag="unseen")
