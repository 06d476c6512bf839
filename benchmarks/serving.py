"""Embedding and searching with what was trained, against the bare loop and against faiss' own, in one run.

    python benchmarks/serving.py                                   # ResNet-18 at 224, 100,000 × 128 to search
    python benchmarks/serving.py --backbone resnet10t --image-size 64 --gallery 20000

Contenders take turns within a repetition, so that a busy machine disturbs all alike; medians are printed. The
network has random weights, which costs what trained ones cost. Vectors lie in clusters, as embeddings do.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unseen.data.images import available_cores
from unseen.data.transforms import resized_center
from unseen.deploy.embedding import embed_images
from unseen.deploy.exchange import INPUT, OUTPUT, noise, prepared, to_onnx
from unseen.deploy.gallery import Gallery
from unseen.deploy.index.indexed import build_index, searchable
from unseen.deploy.listing import list_images, read_place
from unseen.deploy.model import Model
from unseen.deploy.quantization import Labelled, to_int8_onnx
from unseen.nn.backbone import Backbone
from unseen.nn.embedder import Embedder
from unseen.nn.fusion import LastMap

CLOCK = time.process_time if available_cores() == 1 else time.perf_counter
"""On one core what else runs there does not count."""
INDEXES = {
    "hnsw": {"_target_": "unseen.deploy.index.faiss_kinds.Graph", "links": 32, "building_effort": 128},
    "ivf_pq": {
        "_target_": "unseen.deploy.index.faiss_kinds.Compressed",
        "dimensions_per_byte": 4,
        "candidates": 20,
    },
}


def model_of(backbone: str, image_size: int) -> Model:
    network = Embedder(
        Backbone(
            backbone,
            image_size=image_size,
            taps="late",
            weights="none",
            mean=None,
            std=None,
            options=None,
            frozen=False,
        ),
        LastMap,
        size=128,
        normalize=True,
        layer_norm=False,
        readout="features",
        whitening=None,
        frozen_batch_norm=False,
    )
    preparation = resized_center(size=image_size, resize=256 / 224)
    return Model(network.requires_grad_(False).eval(), preparation, {"bundle": "0" * 64})


def in_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, ascending; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            start = CLOCK()
            run()
            seconds[name].append(CLOCK() - start)
    return {name: sorted(values[1:]) for name, values in seconds.items()}


def embedding(options: argparse.Namespace, folder: Path) -> None:
    model = model_of(options.backbone, options.image_size)
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(options.images):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "images" / f"{index}.jpg")
    listing = list_images(folder / "images")
    decoded = [read_place(place) for place in listing.places]
    prepared = torch.stack([model.prepare(pixels) for pixels in decoded])
    rounds = iter(range(1000))

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, len(prepared), 64):
            model.embedder(prepared[start : start + 64])

    def gallery() -> None:
        where = folder / f"gallery {next(rounds)}"
        embed_images(model, listing, where, batch_size=64, progress=lambda count: None)

    def decoding() -> None:
        for place in listing.places:
            model.prepare(read_place(place))

    seconds = in_turns(
        {
            "bare loop over prepared images": bare,
            "Model.embed, prepared images": lambda: list(map(model.embed_prepared, prepared.split(64))),
            "Model.embed, decoded images": lambda: model.embed(decoded),
            "decode and prepare alone, one thread": decoding,
            "unseen embed, files to gallery": gallery,
        },
        options.repeats,
    )
    print(f"\n{options.backbone} at {options.image_size}, {options.images} JPEG of 500 × 375\n")
    print("| | images/s | of the bare loop |\n|---|---:|---:|")
    first = median(seconds["bare loop over prepared images"])
    for name, values in seconds.items():
        value = median(values)
        print(f"| {name} | {options.images / value:,.0f} | {first / value:.2f} |")


def latency(options: argparse.Namespace, folder: Path) -> None:
    import onnxruntime

    model = model_of(options.backbone, options.image_size)
    images = noise(model, 64)
    files = {"ONNX Runtime": to_onnx(model, folder / "float.onnx", images, preprocessing=False).path}
    judged = Labelled(images, np.arange(len(images)) // 2, "noise")
    files["ONNX Runtime, int8"] = to_int8_onnx(
        model,
        folder / "int8.onnx",
        images,
        preprocessing=False,
        most_lost=1.0,
        calibration=images,
        judged=judged,
    ).path
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    sessions = {name: onnxruntime.InferenceSession(path, settings) for name, path in files.items()}
    compiled = torch.compile(model.embedder)

    @torch.inference_mode()
    def embed(network: Callable[[torch.Tensor], object], batch: torch.Tensor) -> None:
        network(batch)

    print(f"\n{options.backbone} at {options.image_size}, prepared images; range in brackets\n")
    print("| | ms, 1 image | ms an image, 32 at once |\n|---|---:|---:|")
    cells: dict[str, list[str]] = {}
    for size in (1, 32):
        batch = prepared(model, images[:size])
        contenders: dict[str, Callable[[], object]] = {
            "eager": partial(embed, model.embedder, batch),
            "torch.compile": partial(embed, compiled, batch),
        }
        for name, session in sessions.items():
            contenders[name] = partial(session.run, [OUTPUT], {INPUT: batch.numpy()})
        for name, values in in_turns(contenders, 10 * options.repeats).items():
            low, middle, high = (1000 * one / size for one in (values[0], median(values), values[-1]))
            cells.setdefault(name, []).append(f"{middle:.1f} ({low:.1f}–{high:.1f})")
    for name, both in cells.items():
        print(f"| {name} | {' | '.join(both)} |")


def clustered(count: int, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(7).normal(size=(1000, 128))
    generator = np.random.default_rng(seed)
    values = centres[generator.integers(0, 1000, count)] + 0.7 * generator.normal(size=(count, 128))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def searching(options: argparse.Namespace, folder: Path) -> None:
    import faiss

    gallery = Gallery.create(folder / "gallery", "0" * 64, 128)
    names = [str(row) for row in range(options.gallery)]
    columns = {"path": names, "label": [""] * len(names), "modified": [""] * len(names)}
    gallery.append(clustered(options.gallery, 0), columns)
    queries = torch.from_numpy(clustered(options.queries, 1))
    flat = faiss.IndexFlatIP(128)
    flat.add(np.ascontiguousarray(gallery.embeddings))
    exact: dict[str, Callable[[], NDArray[np.int64]]] = {
        "faiss IndexFlatIP": lambda: flat.search(queries.numpy(), 10)[1],
        "unseen, exact": lambda: gallery.search(queries, 10).ids,
    }
    contenders = dict(exact)
    costs = dict.fromkeys(contenders, (0.0, gallery.embeddings.nbytes))
    for name, kind in INDEXES.items():
        start = CLOCK()
        measured = build_index(gallery, kind, recall=0.95, k=10)
        cost = (CLOCK() - start, measured.bytes)
        indexed = searchable(gallery)
        # The same index with the effort that the search before it has set, and nothing decided exactly.
        contenders[f"unseen, {name}"] = partial(lambda indexed: indexed.search(queries, 10).ids, indexed)
        contenders[f"faiss itself, {name}"] = partial(
            lambda index: index.search(queries.numpy(), 10)[1], indexed.index.index
        )
        costs |= dict.fromkeys([f"unseen, {name}", f"faiss itself, {name}"], cost)
    seconds = in_turns(contenders, options.repeats)
    first, wanted = median(seconds["faiss IndexFlatIP"]), exact["unseen, exact"]()
    print(f"\n{options.queries:,} queries at once, 10 of {options.gallery:,} × 128; range in brackets\n")
    print("| | queries/s | of faiss, exact | of the 10 nearest found | built and tuned, s | index, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, values in seconds.items():
        rates = [options.queries / value for value in values]
        built, size = costs[name]
        found = recall(contenders[name](), wanted)
        print(
            f"| {name} | {median(rates):,.0f} ({rates[-1]:,.0f}–{rates[0]:,.0f}) "
            f"| {first / median(values):.2f} | {found:.3f} | {built:,.0f} | {size / 1e6:,.0f} |"
        )
    # Linux counts kilobytes.
    print(f"\nPeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    hits = [len(set(one) & set(other)) for one, other in zip(found.tolist(), wanted.tolist(), strict=True)]
    return float(np.mean(hits)) / wanted.shape[1]


PARTS = {"embedding": embedding, "latency": latency, "searching": searching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {available_cores()} cores, torch {torch.__version__}, seconds of {CLOCK.__name__}")
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            PARTS[part](options, Path(temporary))


if __name__ == "__main__":
    main()
