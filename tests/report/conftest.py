"""Runs that nobody trained: records with the numbers that a test wants."""

import math
from pathlib import Path

import pytest

from unseen.report.runs import Run, Runs
from unseen.tracking.environment import Environment, PeakMemory
from unseen.tracking.record import RunRecord

HERE = Environment(
    versions={"unseen-dml": "0.2.0"},
    commit=None,
    system="Linux",
    processor="a processor",
    cores=2,
    memory_bytes=2**33,
    accelerators=[],
)
MEMORY = PeakMemory(host_bytes=2**30, accelerator_bytes=None)
PARTS = {
    "baseline": ("last", "none"),
    "gdfl": ("attention", "none"),
    "cann": ("last", "grl"),
    "full": ("attention", "grl"),
}


def make_record(
    method="baseline",
    seed=0,
    value=0.5,
    *,
    data="cub",
    loss="triplet",
    split="a" * 64,
    config=None,
    **changes,
):
    """A record whose MAP@R on unseen classes is `value`, and whose Recall@1 is twice that."""
    fusion, adversary = PARTS.get(method, ("last", "none"))
    content = {
        "seed": seed,
        "fusion": {"_target_": f"unseen.nn.fusion.{fusion.title()}", "rank": 8},
        "adversary": None if adversary == "none" else {"_target_": "unseen.nn.Grl", "strength": 0.1},
        "trainer": {"_target_": "lightning.Trainer", "max_epochs": 4, "devices": 1},
        "data": {"image_size": 64, "root": f"/data/{method}/{seed}"},
        "run_folder": f"runs/{method}_{seed}",
    }
    for key, new in (config or {}).items():
        *above, name = key.split(".")
        place = content
        for part in above:
            place = place[part]
        place[name] = new
    given = {
        "choices": {"ablation": method, "data": data, "loss": loss, "fusion": fusion, "adversary": adversary},
        "seed": seed,
        "config": content,
        "split": split,
        "manifest": "b" * 64,
        "metrics": {
            "unseen": {"map_at_r": value, "recall_at_1": 2 * value},
            "untrained": {"map_at_r": 0.2, "recall_at_1": 0.4},
            "gap": {"map_at_r": 0.1, "recall_at_1": math.nan},
        },
        "seconds": {"train": 10.0 + seed, "train_total": 20.0 + seed},
        "images_per_second": 100.0 + seed,
        "parameters": 1000,
        "peak_memory": MEMORY,
        "environment": HERE,
        "finished": "2026-01-01T00:00:00+00:00",
        "overrides": [f"ablation={method}", f"seed={seed}"],
    }
    return RunRecord(**(given | changes))


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def runs_of():
    """`runs_of(record, …)`: as if they had been loaded, each from a folder of its own."""

    def made(*records):
        found = [Run(Path(f"runs/{number:03}"), record) for number, record in enumerate(records)]
        return Runs(
            finished=tuple(run for run in found if run.record.status == "success"),
            unfinished=tuple(run for run in found if run.record.status != "success"),
        )

    return made


@pytest.fixture
def grid_of(runs_of):
    """`grid_of(values)`: runs from `{(method, loss, seed): value}`."""

    def made(values, **changes):
        return runs_of(
            *(
                make_record(method, seed, value, loss=loss, **changes)
                for (method, loss, seed), value in values.items()
            )
        )

    return made
