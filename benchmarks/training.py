"""The training loop against bare steps and against pytorch-metric-learning's trainer, in one run.

    python benchmarks/training.py                         # ResNet-18 at 112, photographs of 500 × 375
    python benchmarks/training.py --backbone resnet10t --image-size 64 --steps 6 --repeats 2     # 2 minutes
    python benchmarks/training.py experiment=mobilenetv2_128 trainer.precision=bf16-mixed data.cache=ram
    python benchmarks/training.py --backbone resnet50 --image-size 224 sampler.batch_size=16
    python benchmarks/training.py --processor-time data.workers=0     # on a machine that others use too

Further arguments are those of `unseen train`. Contenders take turns within a repetition, so that a busy
machine disturbs all alike; the first step of each, which warms up, is not counted. The bare loop is forward,
loss, backward and step of the same network on batches that are decoded already: what no loop can surpass.
Networks have random weights, which cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import torch  # noqa: E402  a start counts its imports
from lightning import Callback  # noqa: E402
from loading import Plain, make_photographs  # noqa: E402
from pytorch_metric_learning.losses import MultiSimilarityLoss  # noqa: E402
from pytorch_metric_learning.trainers import MetricLossOnly  # noqa: E402

from unseen.config.build import Given, build  # noqa: E402
from unseen.config.command_line import building, load_config  # noqa: E402
from unseen.data.images import available_cores  # noqa: E402
from unseen.data.sources import folder  # noqa: E402
from unseen.nn.allocator import keep_freed_memory  # noqa: E402
from unseen.training.audit import AdversaryAudit  # noqa: E402
from unseen.training.progress import quiet  # noqa: E402
from unseen.training.throughput import Throughput  # noqa: E402
from unseen.workflow.run import Run  # noqa: E402

Clock = Callable[[], float]
BATCH_SIZE = 64
METHODS = {
    "baseline": ["ablation=baseline"],
    "gdfl": ["ablation=gdfl"],
    "gdfl, low rank": ["ablation=custom", "fusion=attention_low_rank"],
    "full": ["ablation=full", "adversary.silent_epochs=0"],
    "full, low rank": [
        *("ablation=custom", "fusion=attention_low_rank", "adversary=grl", "adversary.silent_epochs=0")
    ],
}


class Watch(Callback):
    """When the first step was done, what the audit at the epoch's end takes, and the processor's time."""

    first_step = float("nan")
    audit = 0.0

    def __init__(self) -> None:
        self.images: list[int] = []
        self.marks: list[float] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images.append(len(batch.labels))
        self.marks.append(time.process_time())
        if self.first_step != self.first_step:
            self.first_step = time.perf_counter() - STARTED

    @property
    def images_per_processor_second(self) -> float:
        """Over all steps but the first, which warms up."""
        return sum(self.images[1:]) / (self.marks[-1] - self.marks[0])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        audit = next(one for one in trainer.callbacks if isinstance(one, AdversaryAudit))
        probe = audit.on_train_epoch_end

        def timed(*given: Any) -> None:
            start = time.perf_counter()
            probe(*given)
            self.audit += time.perf_counter() - start

        audit.on_train_epoch_end = timed  # type: ignore[method-assign]


def run_of(images: Path, where: Path, overrides: Sequence[str], watch: Watch | None = None) -> Run:
    typed = [
        *("data=folder", f"data.root={images}", "data.train_fraction=0.75"),
        *("backbone.weights=none", "sampler=shuffled", f"sampler.batch_size={BATCH_SIZE}"),
        *("trainer.max_epochs=1", "callbacks.progress=null", "callbacks.summary=null"),
        *("+trainer.enable_progress_bar=false", "+trainer.enable_model_summary=false"),
        *overrides,
    ]
    config = load_config(typed, run_folder=str(Path(tempfile.mkdtemp(dir=where))))
    with quiet(), building():
        return build(config, Given(callbacks=[watch] if watch else []))


def trained(run: Run) -> Throughput:
    with quiet():
        run.trainer.fit(run.learner, datamodule=run.data)
    return next(one for one in run.trainer.callbacks if isinstance(one, Throughput))  # type: ignore[attr-defined]


def size_of_batches(run: Run) -> int:
    return len(next(iter(run.data.train_dataloader())).labels)


def bare(run: Run, steps: int, clock: Clock) -> float:
    """Images a second."""
    learner = run.learner.train()
    batches = [batch for batch, _ in zip(run.data.train_dataloader(), range(4), strict=False)]
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-5)
    half = "bf16" in str(run.trainer.precision)
    for step in range(steps):
        if step == 1:
            start = clock()
        batch = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = learner.loss(learner(batch.images).embedding, batch.labels, batch.ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (steps - 1) * len(batches[0].labels) / (clock() - start)


class Embedding(torch.nn.Module):
    """The network as pytorch-metric-learning's trainer calls it."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.learner = run.learner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.learner(images).embedding


def theirs(run: Run, images: Path, steps: int, clock: Clock) -> float:
    """Images a second of pytorch-metric-learning's trainer: PIL and torchvision as its examples have them."""
    manifest = folder.read(images, split="order", train_fraction=0.75, seed=0, listed="test")
    network = Embedding(run).train()
    batch_size = size_of_batches(run)
    marks: list[float] = []
    trainer = MetricLossOnly(
        models={"trunk": network, "embedder": torch.nn.Identity()},
        optimizers={"trunk_optimizer": torch.optim.AdamW(network.parameters(), lr=1e-5)},
        batch_size=batch_size,
        loss_funcs={"metric_loss": MultiSimilarityLoss()},
        dataset=Plain(manifest, run.data.split.train, run.learner.embedder.backbone.image_size),
        dataloader_num_workers=run.data.workers,
        iterations_per_epoch=steps,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=lambda trainer: marks.append(clock()),
    )
    trainer.train(num_epochs=1)
    return (len(marks) - 1) * batch_size / (marks[-1] - marks[0])


def median_seconds(function: Callable[[], object], clock: Clock, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        function()
        seconds.append(clock() - start)
    return statistics.median(seconds[1:])


def parts(run: Run, clock: Clock) -> dict[str, float]:
    """Milliseconds an image of the parts of a step alone: forward and backward where there is a gradient."""
    dataset = run.data.train_dataloader().dataset
    batch = next(iter(run.data.train_dataloader()))
    maps = run.learner.embedder.backbone(batch.images)
    leaves = [map_.detach().requires_grad_() for map_ in (*maps.taps, maps.final)]
    with torch.no_grad():
        embedding = run.learner.embedder.train()(batch.images).embedding
    embedding = embedding.requires_grad_()

    def fusion() -> None:
        features = run.learner.embedder.fusion(type(maps)(leaves[:-1], leaves[-1])).features
        features.sum().backward()

    def loss() -> None:
        run.learner.loss(embedding, batch.labels, batch.ids).backward()

    def decoding() -> None:
        for place in range(len(batch.labels)):
            dataset[(place, 0, place)]

    per_image = 1000 / len(batch.labels)
    return {
        "decoding and augmentation, in one process": per_image * median_seconds(decoding, clock),
        "fusion": per_image * median_seconds(fusion, clock),
        "loss": per_image * median_seconds(loss, clock),
    }


def start_of(images: Path, overrides: Sequence[str]) -> dict[str, float]:
    """A process of its own: imports, building, two steps or more, its peak."""
    command = [sys.executable, __file__, "--start", str(images), *overrides]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def start_here(images: Path, overrides: Sequence[str]) -> None:
    keep_freed_memory()
    watch = Watch()
    with tempfile.TemporaryDirectory() as where:
        trained(run_of(images, Path(where), overrides, watch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"first step": watch.first_step, "peak MiB": peak}))


def measure(options: argparse.Namespace, overrides: list[str], images: Path, where: Path) -> None:
    make = functools.partial(run_of, images, where)
    clock = time.process_time if options.processor_time else time.perf_counter
    made = make([*overrides, *METHODS["baseline"]])
    waiting: dict[str, list[float]] = {name: [] for name in options.methods}
    audits: list[float] = []

    def loop(name: str) -> float:
        watch = Watch()
        throughput = trained(make([*overrides, *METHODS[name]], watch))
        waiting[name].append(throughput.waiting)
        audits.append(watch.audit)
        return watch.images_per_processor_second if options.processor_time else throughput.images_per_second

    def bare_of(name: str) -> float:
        return bare(make([*overrides, *METHODS[name]]), options.steps, clock)

    contenders: dict[str, Callable[[], float]] = {
        "bare steps, baseline": lambda: bare_of("baseline"),
        **{f"unseen, {name}": functools.partial(loop, name) for name in options.methods},
    }
    if "gdfl" in options.methods:
        contenders["bare steps, gdfl"] = lambda: bare_of("gdfl")
    if options.peers and "bf16" not in str(made.trainer.precision):
        contenders["pytorch-metric-learning, baseline"] = lambda: theirs(
            make([*overrides, *METHODS["baseline"]]), images, options.steps, clock
        )
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, contender in contenders.items():
            speeds[name].append(contender())
    first = statistics.median(speeds["bare steps, baseline"])
    print(
        "\n| | images/s (lowest–highest) | of bare steps, baseline | waits for data |\n|---|---:|---:|---:|"
    )
    for name, values in speeds.items():
        median = statistics.median(values)
        waits = waiting.get(name.removeprefix("unseen, "), []) if name.startswith("unseen") else []
        share = f"{statistics.median(waits):.1%}" if waits else ""
        spread = f"{median:.1f} ({min(values):.1f}–{max(values):.1f})"
        print(f"| {name} | {spread} | {median / first:.2f} | {share} |")

    if not {"gdfl", "full"} <= set(options.methods):
        return
    step = 1000 / statistics.median(speeds["unseen, gdfl"])
    adversary = 1000 / statistics.median(speeds["unseen, full"]) - step
    print(f"\nOf gdfl's {step:.2f} ms an image:\n\n| | ms an image | share |\n|---|---:|---:|")
    rows = parts(make([*overrides, *METHODS["gdfl"]]), clock)
    bare_step = 1000 / statistics.median(speeds["bare steps, gdfl"])
    rows["the loop beyond bare steps: waiting, clipping, logging"] = step - bare_step
    rows["adversary (full less gdfl)"] = adversary
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} | {value / step:.1%} |")
    print(f"\nThe audit at an epoch's end took {statistics.median(audits):.1f} s.")

    print("\n| | seconds from start to the end of the first step | peak memory, MiB |\n|---|---:|---:|")
    for name in ("baseline", "gdfl", "full"):
        found = start_of(images, [*overrides, *METHODS[name]])
        print(f"| unseen, {name} | {found['first step']:.1f} | {found['peak MiB']:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18", help="timm's name")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--photo", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=12, help="of each contender")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether other packages' trainers take their turns, too",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of the processor for this process, in place of the clock: with data.workers=0",
    )
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.start:
        start_here(options.start, overrides)
        return
    keep_freed_memory()
    network = [] if any(one.startswith("experiment=") for one in overrides) else ["backbone=resnet18"]
    if network:
        network += [f"backbone.model={options.backbone}", f"data.image_size={options.image_size}"]
    with tempfile.TemporaryDirectory() as temporary:
        images, where = Path(temporary) / "images", Path(temporary) / "runs"
        images.mkdir()
        where.mkdir()
        # Six of eight classes train, on all but the images that the protocol holds out.
        make_photographs(images, 2 * options.steps * BATCH_SIZE, *options.photo)
        machine, threads = platform.processor() or platform.machine(), torch.get_num_threads()
        print(f"{machine}, {available_cores()} cores, {threads} threads, torch {torch.__version__}")
        print(f"{' '.join([*network, *overrides])}: {options.steps} steps")
        steps = f"+trainer.limit_train_batches={options.steps}"
        measure(options, [*network, steps, *overrides], images, where)


if __name__ == "__main__":
    main()
