"""The record of a run, `record.json`: all that a comparison or a report ever reads of it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import unseen
from unseen.files import replacing

SCHEMA = 1
"""Raised when a field changes its meaning or goes away; a new field alone does not raise it."""

PACKAGES = (
    "unseen-dml",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "pytorch-metric-learning",
    "torchmetrics",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "pillow",
)


@dataclass(frozen=True)
class Environment:
    """Where a run took place.

    Args:
        versions: package → version, Python included.
        commit: of the checkout that the package lies in, with `-dirty` when files differ from it; none for an
            installed package, or without git.
        system: operating system and architecture.
        processor: name of the CPU.
        cores: logical cores that the process may use.
        memory_bytes: main memory of the machine.
        accelerators: name of each GPU.
    """

    versions: dict[str, str]
    commit: str | None
    system: str
    processor: str
    cores: int
    memory_bytes: int
    accelerators: list[str]

    @staticmethod
    def here() -> Environment:
        """Of this process."""
        return Environment(
            versions=_versions(),
            commit=_commit(Path(unseen.__file__).resolve().parents[2]),
            system=platform.platform(),
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            accelerators=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        )


@dataclass(frozen=True)
class PeakMemory:
    """The most memory the process has held so far.

    Args:
        host_bytes: resident, of the main process alone: loader workers are not in it.
        accelerator_bytes: allocated on the GPU that held most; none without one.
    """

    host_bytes: int
    accelerator_bytes: int | None

    @staticmethod
    def here() -> PeakMemory:
        """Of this process."""
        gpus = range(torch.cuda.device_count())
        return PeakMemory(_peak_resident(), max(map(torch.cuda.max_memory_allocated, gpus), default=None))


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked for, what came out, what it took.

    Args:
        choices: Hydra group → choice, such as `loss` → `triplet`.
        seed: of the run.
        config: resolved, as plain data.
        split: fingerprint of the split (hex).
        manifest: content hash of the manifest (hex).
        metrics: split → metric → value; NaN where a metric is not defined.
        seconds: stage → duration.
        images_per_second: in training; NaN when it was not measured.
        peak_memory: at the end of the run.
        environment: where it took place.
        finished: end of the run, ISO 8601 in UTC.
        schema: version of this form.
    """

    choices: dict[str, str]
    seed: int
    config: dict[str, Any]
    split: str
    manifest: str
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    images_per_second: float
    peak_memory: PeakMemory = field(default_factory=PeakMemory.here)
    environment: Environment = field(default_factory=Environment.here)
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write strict JSON, atomically. JSON knows no NaN and no infinity: both become null.

        Raises:
            TypeError: the config holds something that is not plain data.
        """
        text = json.dumps(_finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> RunRecord:
        """Read what `save` wrote; a metric that is null becomes NaN.

        Raises:
            ValueError: the file is not a record, or one of a later schema.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is not the record of a run: {error!r}.") from error
        if schema != SCHEMA:
            raise ValueError(
                f"'{path}' has schema {schema}, this version of unseen reads {SCHEMA}: "
                "read it with the version that wrote it, or run it again."
            )
        try:
            return _from_json(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"'{path}' is not a whole record: {error!r}.") from error


def _from_json(content: dict[str, Any]) -> RunRecord:
    known = {name: content[name] for name in RunRecord.__dataclass_fields__}
    known["metrics"] = {
        split: {name: _number(value) for name, value in metrics.items()}
        for split, metrics in content["metrics"].items()
    }
    known["images_per_second"] = _number(content["images_per_second"])
    known["peak_memory"] = PeakMemory(**content["peak_memory"])
    known["environment"] = Environment(**content["environment"])
    return RunRecord(**known)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    """The same plain data with null for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _commit(checkout: Path) -> str | None:
    # Only a repository of our own: an installed package may lie inside someone else's.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _peak_resident() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
