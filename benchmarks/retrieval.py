"""Exact evaluation against its peers: time, peak memory and equality of results, side by side in one run.

    python benchmarks/retrieval.py                     # three sizes, three repetitions
    python benchmarks/retrieval.py --sizes cub --repeats 1
    python benchmarks/retrieval.py --decay 0           # isotropic embeddings, the hardest for low precision
    python benchmarks/retrieval.py --sizes million     # queries against 10^6 x 128 on a slice, extrapolated
    python benchmarks/retrieval.py --embeddings real.npz      # `vectors` (N, d) float32 and `labels` (N,)
    python benchmarks/retrieval.py --processor-time --threads 1      # on a machine that others use too

Every measurement is a process of its own, and methods take turns within a repetition, so that a busy machine
disturbs all alike. Peak memory is what a process needs beyond the interpreter and the embeddings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZES = {"cub": (5924, 100, 512), "inshop": (12612, 3985, 512), "sop": (60502, 11316, 512)}
MILLION = (1_000_000, 100_000, 128)
RECALL_AT = (1, 2, 4, 8)
Metrics = dict[str, float]


def clustered(count: int, classes: int, width: int, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `(N, d)` in classes of like size; the i-th principal variance falls as `i^-decay`."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, width + 1).float().pow(-decay / 2)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    labels = torch.randint(classes, (count,), generator=generator)
    labels[: 2 * classes] = torch.arange(2 * classes) % classes
    vectors = torch.randn(classes, width, generator=generator)[labels]
    vectors = (vectors + 0.7 * torch.randn(count, width, generator=generator)) * scale @ turn
    return torch.nn.functional.normalize(vectors).numpy(), labels.numpy()


def ours(vectors: np.ndarray, labels: np.ndarray) -> Metrics:
    from unseen.retrieval import evaluate

    return evaluate(vectors, labels, recall_at=RECALL_AT, knn_accuracy_at=()).metrics


def from_neighbours(neighbours: np.ndarray, labels: np.ndarray, relevant: np.ndarray) -> Metrics:
    hits = labels[neighbours] == labels[:, None]
    answerable = relevant > 0
    hits, relevant = hits[answerable], relevant[answerable]
    counted = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    precision = counted.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    metrics = {f"recall_at_{k}": float(hits[:, :k].any(axis=1).mean()) for k in RECALL_AT}
    metrics["r_precision"] = float((counted.sum(axis=1) / relevant).mean())
    metrics["map_at_r"] = float(((precision * counted).sum(axis=1) / relevant).mean())
    return metrics


def without_self(neighbours: np.ndarray) -> np.ndarray:
    """Drop each row's own number, or the last where it is missing."""
    own = neighbours == np.arange(len(neighbours))[:, None]
    own[~own.any(axis=1), -1] = True
    return neighbours[~own].reshape(len(neighbours), -1)


def faiss_flat(vectors: np.ndarray, labels: np.ndarray) -> Metrics:
    import faiss

    relevant = np.bincount(labels)[labels] - 1
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, neighbours = index.search(vectors, int(max(relevant.max(), max(RECALL_AT))) + 1)
    return from_neighbours(without_self(neighbours), labels, relevant)


def metric_learning(vectors: np.ndarray, labels: np.ndarray) -> Metrics:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    found = AccuracyCalculator(include=names, k="max_bin_count").get_accuracy(vectors, labels)
    return {
        "recall_at_1": found["precision_at_1"],
        "r_precision": found["r_precision"],
        "map_at_r": found["mean_average_precision_at_r"],
    }


def blocked_torch(vectors: np.ndarray, labels: np.ndarray) -> Metrics:
    relevant = np.bincount(labels)[labels] - 1
    k = int(max(relevant.max(), max(RECALL_AT))) + 1
    everything = torch.from_numpy(vectors)
    neighbours = [(block @ everything.T).topk(k, dim=1).indices for block in everything.split(1024)]
    return from_neighbours(without_self(torch.cat(neighbours).numpy()), labels, relevant)


def bare_product(vectors: np.ndarray, labels: np.ndarray) -> Metrics:
    everything = torch.from_numpy(vectors)
    out = torch.empty(1024, len(vectors))
    for block in everything.split(1024):
        torch.mm(block, everything.T, out=out[: len(block)])
    return {}


METHODS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Metrics]]] = {
    "ours": ("unseen.retrieval.evaluate", ours),
    "faiss": ("faiss IndexFlatIP + vectorised metrics", faiss_flat),
    "pml": ("pytorch-metric-learning AccuracyCalculator(k='max_bin_count')", metric_learning),
    "torch": ("torch: blocks of 1,024 rows, topk", blocked_torch),
    "gemm": ("bare float32 product, full, nothing kept", bare_product),
}


def memory(field: str) -> int:
    """Bytes of a line of /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def warm_up(method: str, vectors: np.ndarray) -> None:
    """Imports, thread pools and kernels are not what is measured."""
    METHODS[method][1](vectors[:256], np.arange(256) // 2)
    if method != "ours":
        return
    from unseen.retrieval import search

    for precision in ("float32", "bfloat16", "int8"):
        search(vectors[:512], k=8, precision=precision)


def measure(method: str, folder: Path, options: argparse.Namespace) -> None:
    """Run one method once and print what it took as JSON."""
    torch.set_num_threads(options.threads)
    vectors, labels = np.load(folder / "vectors.npy"), np.load(folder / "labels.npy")
    work = METHODS[method][1]
    clock = time.process_time if options.processor_time else time.perf_counter
    warm_up(method, vectors)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin = clock()
    metrics = work(vectors, labels)
    seconds = clock() - begin
    print(json.dumps({"seconds": seconds, "bytes": memory("VmHWM") - before, "metrics": metrics}))


def breakdown(folder: Path, threads: int) -> None:
    """Print where the time of ours goes; what several threads do is divided by their number."""
    from unseen.retrieval.engine import nearest, sweep

    torch.set_num_threads(threads)
    vectors, labels = np.load(folder / "vectors.npy"), np.load(folder / "labels.npy")
    warm_up("ours", vectors)
    seconds: dict[str, float] = {}

    def timed(module: Any, name: str, part: str, share: int) -> None:
        function = getattr(module, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **options)
            seconds[part] = seconds.get(part, 0.0) + (time.perf_counter() - begin) / share
            return result

        setattr(module, name, measured)

    timed(nearest, "choose_precision", "choosing the precision", 1)
    timed(nearest, "float64_search", "all pairs in float64", 1)
    timed(sweep, "like_with_like", "ordering the embeddings", 1)
    timed(sweep, "round_to", "rounding the embeddings", 1)
    timed(sweep, "multiply", "products in low precision", threads)
    timed(sweep, "scan_rows", "finding and holding candidates", threads)
    timed(sweep, "scan_columns", "finding and holding candidates", threads)
    timed(sweep, "decide", "candidates compared in float64", threads)
    begin = time.perf_counter()
    ours(vectors, labels)
    total = time.perf_counter() - begin
    seconds["metrics, waiting, the rest"] = total - sum(seconds.values())
    print("\n| where our time goes | s | % |\n|---|---:|---:|")
    for part, taken in seconds.items():
        print(f"| {part} | {taken:.2f} | {100 * taken / total:.0f} |")


def in_process(arguments: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *arguments, "--threads", str(threads)]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment)
    if outcome.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{outcome.stderr[-2000:]}")
    return outcome.stdout


def compare(name: str, options: argparse.Namespace, folder: Path) -> None:
    """Measure all methods on one set of embeddings and print their table."""
    if options.embeddings:
        given = np.load(options.embeddings)
        vectors, labels, geometry = given["vectors"], given["labels"], "as given"
    else:
        vectors, labels = clustered(*SIZES[name], options.decay)
        geometry = f"spectrum i^-{options.decay:g}"
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "labels.npy", labels)
    found: dict[str, list[dict]] = {method: [] for method in options.methods}
    for _ in range(options.repeats):
        for method in options.methods:
            arguments = ["--measure", method, "--folder", str(folder)]
            arguments += ["--processor-time"] if options.processor_time else []
            found[method].append(json.loads(in_process(arguments, options.threads).splitlines()[-1]))
    (count, width), classes = vectors.shape, len(np.unique(labels))
    print(f"\n### {name}: {count:,} × {width}, {classes:,} classes, {geometry}\n")
    print("| method | median s | min–max s | time, first = 1 | peak MiB | same results |")
    print("|---|---:|---|---:|---:|---|")
    base = found["ours"][0]["metrics"] if "ours" in found else {}
    reference = statistics.median(run["seconds"] for run in found[options.methods[0]])
    for method in options.methods:
        seconds = [run["seconds"] for run in found[method]]
        median = statistics.median(seconds)
        peak = max(run["bytes"] for run in found[method]) / 2**20
        difference = agreement(base, found[method][0]["metrics"])
        print(
            f"| {METHODS[method][0]} | {median:.2f} | {min(seconds):.2f}–{max(seconds):.2f} "
            f"| {median / reference:.2f} | {peak:,.0f} | {difference} |"
        )
    if "ours" in found:
        print(in_process(["--breakdown", "--folder", str(folder)], options.threads))


def agreement(ours: Metrics, theirs: Metrics) -> str:
    shared = ours.keys() & theirs.keys()
    if not shared:
        return "–"
    worst = max(abs(ours[name] - theirs[name]) for name in shared)
    return "yes" if worst < 1e-9 else f"differ by up to {worst:.1e} (near-ties in float32)"


def million(options: argparse.Namespace) -> None:
    """A slice of queries against a million, and what a million queries would take."""
    from unseen.retrieval import search

    torch.set_num_threads(options.threads)
    vectors, _ = clustered(*MILLION, options.decay)
    queries = vectors[: options.queries].copy()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    ids = np.arange(len(vectors))
    begin = time.perf_counter()
    search(queries, vectors, k=10, ids=ids[: options.queries], gallery_ids=ids)
    seconds = time.perf_counter() - begin
    peak = (memory("VmHWM") - before) / 2**20
    print(
        f"\n### a slice of {len(queries):,} queries against {len(vectors):,} × {vectors.shape[1]}, k = 10\n"
    )
    print(f"{seconds:.1f} s, peak {peak:,.0f} MiB beyond the embeddings;", end=" ")
    print(f"a million queries: about {seconds * len(vectors) / len(queries) / 60:.0f} min.")


def machine(threads: int) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or "unknown processor"
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{processor}, {threads} threads, {load}; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, "million"], default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decay", type=float, default=1.0, help="principal variances fall as i^-decay")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--embeddings", type=Path, help="`.npz` of `vectors` and `labels`, in place of --sizes"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds that a processor worked, of all threads together, in place of the clock's",
    )
    parser.add_argument("--queries", type=int, default=20_000, help="of the slice, for --sizes million")
    parser.add_argument("--measure", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--breakdown", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.folder, options)
    if options.breakdown:
        return breakdown(options.folder, options.threads)
    print(f"Machine: {machine(options.threads)}\n\nCommand: `python {' '.join(sys.argv)}`")
    for name in [options.embeddings.stem] if options.embeddings else options.sizes:
        if name == "million":
            million(options)
            continue
        with tempfile.TemporaryDirectory() as folder:
            compare(name, options, Path(folder))
    return None


if __name__ == "__main__":
    main()
