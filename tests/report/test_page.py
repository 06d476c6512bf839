"""The page in a browser: what it says, sorts, filters, opens and compares; without a network, on any screen."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unseen.report.comparison import compare
from unseen.report.page import write_page
from unseen.report.page.content import command, page_content
from unseen.report.page.run_files import MOST_POINTS, MOST_SHEETS, read_curves
from unseen.report.runs import load_runs
from unseen.tracking.record import RunRecord
from unseen.tracking.sheet import RetrievalSheet, SheetRow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
EVIL = "</script><b>Gr​eek Ω & 'λ'"
"""A class name that a page must show and not run."""
EFFECT = {"baseline": 0.0, "gdfl": 0.021, "cann": 0.001, "full": 0.034}

MakeRecord = Callable[..., RunRecord]


def write_runs(
    root: Path,
    make_record: MakeRecord,
    *,
    data: Sequence[str] = ("cub", "cars"),
    losses: Sequence[str] = ("triplet", "proxy_anchor"),
    seeds: int = 3,
    classes: int = 30,
    sheets: bool = True,
    full: bool = True,
) -> None:
    """Folders of runs whose methods differ by `EFFECT`; the last one failed, and another is missing.

    Args:
        root: gets a folder for each.
        make_record: of the room's fixtures.
        data: data sets.
        losses: likewise.
        seeds: of each.
        classes: unseen classes of each data set.
        sheets: whether they left retrieval sheets and curves.
        full: whether nothing failed and nothing is missing.
    """
    generator = np.random.default_rng(0)
    for set_number, name in enumerate(data):
        names = [EVIL, *(f"{name} class {i:02}" for i in range(1, classes))]
        easy = generator.beta(5, 4, classes)
        turns = {method: generator.normal(0, 0.04, classes) for method in EFFECT}
        for loss_number, loss in enumerate(losses):
            for seed in range(seeds):
                luck = generator.normal(0, 0.006)
                for method, effect in EFFECT.items():
                    if not full and (method, loss_number, seed) == ("cann", 0, 1):
                        continue
                    value = 0.32 + 0.08 * set_number + 0.03 * loss_number + effect + luck
                    value += generator.normal(0, 0.003)
                    each = np.clip(easy - easy.mean() + value + turns[method] * (method != "baseline"), 0, 1)
                    record = _record(make_record, method, seed, value, name, loss, names, each)
                    if not full and (method, loss_number, seed) == ("full", 1, 2):
                        error = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.2 GiB."
                        record = dataclasses.replace(
                            record, status="failed", error=error, metrics={}, intervals={}, per_class={}
                        )
                    folder = root / f"{name}_{loss}_{method}_seed{seed}_{set_number}{loss_number}{seed}a9"
                    record.save(folder / "record.json")
                    if sheets and record.status == "success":
                        _curves(folder / "metrics.csv", value, method, seed)
                        _sheet(record, set_number, names, each).save(folder / "retrieval_sheet.json")


def _record(
    make_record: MakeRecord,
    method: str,
    seed: int,
    value: float,
    data: str,
    loss: str,
    names: list[str],
    each: np.ndarray,
) -> RunRecord:
    recall = min(0.95, value + 0.22)
    return make_record(
        method,
        seed,
        value,
        data=data,
        loss=loss,
        split=f"{sum(map(ord, data)):x}" * 20,
        manifest=f"{sum(map(ord, data)) + 1:x}" * 20,
        metrics={
            "unseen": {"map_at_r": value, "recall_at_1": recall, "recall_at_2": min(1.0, recall + 0.07)},
            "seen": {"map_at_r": value + 0.21, "recall_at_1": recall + 0.05, "recall_at_2": math.nan},
            "gap": {"map_at_r": 0.21 - value / 8, "recall_at_1": 0.05, "recall_at_2": math.nan},
            "untrained": {"map_at_r": 0.18, "recall_at_1": 0.35, "recall_at_2": 0.45},
            "validation": {"map_at_r": value + 0.05, "recall_at_1": recall + 0.04, "recall_at_2": 0.7},
        },
        intervals={"unseen": {"map_at_r": (value - 0.02, value + 0.02)}},
        per_class={
            "map_at_r": dict(zip(names, each.tolist(), strict=True)),
            "recall_at_1": dict(zip(names, np.sqrt(each).tolist(), strict=True)),
        },
        images_per_second=312.0 - 20 * ("full" in method) + seed,
        seconds={"train": 1320.0 + 60 * seed, "train_total": 1320.0 + 60 * seed},
        parameters=25_600_000,
        steps=3000,
        chosen_epoch=18 + seed,
        adversary_strength=0.1 if method in ("cann", "full") else None,
        overrides=[f"data={data}", f"loss={loss}", f"ablation={method}", f"seed={seed}"],
    )


def _curves(path: Path, value: float, method: str, seed: int, epochs: int = 20) -> None:
    generator = np.random.default_rng(seed)
    names = ["epoch", "step", "train/loss", "validation/map_at_r", "validation/recall_at_1", "lr-AdamW/head"]
    if method in ("cann", "full"):
        names += ["train/adversary_strength", "train/adversary_accuracy", "train/gradient_norm_metric"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for epoch in range(epochs):
            writer.writerow({"step": epoch * 50, "lr-AdamW/head": 1e-3 * (1 - epoch / epochs)})
            done = 1 - math.exp(-epoch / 5)
            row = {
                "epoch": epoch,
                "step": epoch * 50 + 49,
                "train/loss": 2.5 * math.exp(-epoch / 6) + 0.3 + generator.normal(0, 0.02),
                "validation/map_at_r": 0.2 + (value - 0.15) * done + generator.normal(0, 0.005),
                "validation/recall_at_1": 0.35 + (value - 0.1) * done + generator.normal(0, 0.005),
            }
            if method in ("cann", "full"):
                row |= {
                    "train/adversary_strength": 0.1 * (2 / (1 + math.exp(-10 * epoch / epochs)) - 1),
                    "train/adversary_accuracy": 0.6 * done + generator.normal(0, 0.01),
                    "train/gradient_norm_metric": 0.5 + 0.1 * generator.random(),
                }
            writer.writerow(row)
        writer.writerow({"step": epochs * 50, "epoch": epochs})


def _sheet(record: RunRecord, set_number: int, names: list[str], each: np.ndarray) -> RetrievalSheet:
    """Twelve queries, of which those of hard classes find other classes."""
    generator = np.random.default_rng(sum(map(ord, record.choices["ablation"])) + record.seed)
    rows, shown = [], {}
    for query in range(12):
        label = query * len(names) // 12
        found = [
            label if generator.random() < each[label] + 0.25 else int(generator.integers(len(names)))
            for _ in range(8)
        ]
        images = [100 * one + 1 + int(generator.integers(6)) for one in found]
        similarities = np.sort(generator.uniform(0.4, 0.98, 8))[::-1].round(4).tolist()
        rows.append(SheetRow(100 * label, images, similarities, [one == label for one in found]))
        shown |= {100 * label: label, **dict(zip(images, found, strict=True))}
    pictures = {image: _picture(image, label, set_number) for image, label in shown.items()}
    return RetrievalSheet(
        record.split, record.manifest, rows, {image: names[label] for image, label in shown.items()}, pictures
    )


def _picture(image: int, label: int, set_number: int) -> str:
    """Stripes whose colour and direction are the class's."""
    generator = np.random.default_rng(label + 1000 * set_number)
    colours, angle = generator.integers(30, 230, (2, 3)), generator.uniform(0, math.pi)
    y, x = np.mgrid[:56, :56] / 9
    share = (np.sin(x * math.cos(angle) + y * math.sin(angle) + image) > 0)[..., None]
    pixels = np.where(share, colours[0], colours[1])
    noisy = pixels + np.random.default_rng(image).normal(0, 12, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode()
