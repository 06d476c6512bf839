"""Training batches a second: plain PIL and torchvision v1 against each choice of `data.cache`, in one run.

    python benchmarks/loading.py                        # 1,024 photographs of 500 × 375 pixels, made here
    python benchmarks/loading.py --folder images/       # one's own, a folder for each class
    python benchmarks/loading.py --image-size 48 --photo 48 48

All end with what a network takes: a normalised float batch in the main process. Contenders take turns within
a repetition, so that a busy machine disturbs all alike; workers live through the run, and the first pass,
which starts them, is not counted.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from unseen.data.manifest import Manifest
from unseen.data.module import DataModule
from unseen.data.samplers import Shuffled
from unseen.data.sources import folder
from unseen.data.split import fixed
from unseen.data.transforms import Transforms, random_resized_crop, resized_center, sequence

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 64


def make_photographs(root: Path, count: int, width: int, height: int) -> None:
    """JPEGs with the frequencies of photographs: power falls with the square of the frequency."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    for index in range(count):
        spectrum = np.fft.rfft2(generator.normal(size=(3, height, width))) / frequency
        values = np.fft.irfft2(spectrum, (height, width))
        pixels = (128 + 48 * values / values.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        path = root / f"class {index % 8}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


class Plain(Dataset[tuple[Tensor, int]]):
    """What one writes without a library: PIL, float tensors, normalised in the worker."""

    def __init__(self, manifest: Manifest, rows: np.ndarray, size: int) -> None:
        self.manifest = manifest
        self.rows = rows
        self.transform = v1.Compose(
            [
                v1.RandomResizedCrop(size, scale=(0.2, 1.0)),
                v1.RandomHorizontalFlip(),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row = int(self.rows[position])
        image = Image.open(self.manifest.absolute(row)).convert("RGB")
        return self.transform(image), int(self.manifest.labels[row])


def module(
    manifest: Manifest, cache: str, workers: int, options: argparse.Namespace, where: Path
) -> DataModule:
    flip = v2.RandomHorizontalFlip()
    return DataModule(
        manifest,
        functools.partial(fixed, seed=0, held_out_fraction=0.0),
        functools.partial(Shuffled, batch_size=BATCH_SIZE),
        Transforms(
            sequence([random_resized_crop(options.image_size, (0.2, 1.0)), flip]),
            resized_center(options.image_size, 1.0),
        ),
        seed=0,
        workers=workers,
        evaluation_batch_size=BATCH_SIZE,
        exclude=None,
        on_error="raise",
        crop_to_box=False,
        cache=cache,
        cache_size=max(256, options.image_size),
        cache_dir=where,
    )


def contenders(
    manifest: Manifest, workers: int, options: argparse.Namespace, where: Path
) -> dict[str, Callable[[], int]]:
    """Name → a pass over the training images that returns how many there were."""
    modules = {cache: module(manifest, cache, workers, options, where) for cache in ("none", "ram", "memmap")}
    plain = DataLoader(
        Plain(manifest, modules["none"].split.train, options.image_size),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (MEAN, STD))

    def of_plain() -> int:
        return sum(len(images) for images, _ in plain)

    def of_module(batches: Iterable[Any]) -> int:
        return sum(len(batch.images.float().sub_(mean).div_(std)) for batch in batches)

    ours = {
        f"data.cache={cache}": functools.partial(of_module, data.train_dataloader())
        for cache, data in modules.items()
    }
    return {"PIL + torchvision v1": of_plain, **ours}


def measured(passes: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Name → median images a second."""
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        for name, run in passes.items():
            start = time.perf_counter()
            count = run()
            if repeat:
                speeds[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="a folder of images for each class; default: made here")
    parser.add_argument("--count", type=int, default=1024, help="photographs to make")
    parser.add_argument("--photo", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "images"
        if not options.folder:
            root.mkdir()
            make_photographs(root, options.count, *options.photo)
        manifest = folder.read(root, split="order", train_fraction=0.75, seed=0, listed="test")
        kind = options.folder or "{} × {} JPEG".format(*options.photo)
        print(f"{len(manifest):,} images ({kind}) → {options.image_size} px, batches of {BATCH_SIZE}")
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        )
        columns = {
            workers: measured(contenders(manifest, workers, options, Path(temporary)), options.repeats)
            for workers in options.workers
        }
    print_table(columns)


def print_table(columns: dict[int, dict[str, float]]) -> None:
    titles = [f"images/s, {f'{count} workers' if count else 'no workers'} | ratio" for count in columns]
    print(f"\n| | {' | '.join(titles)} |")
    print(f"|---|{'---:|---:|' * len(columns)}")
    first, *_ = next(iter(columns.values()))
    for name in next(iter(columns.values())):
        cells = [f"{speeds[name]:,.0f} | {speeds[name] / speeds[first]:.1f}" for speeds in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
