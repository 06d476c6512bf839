"""Where a run takes place, and how much memory it takes."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from unseen.data.images import available_cores

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
    def here(accelerators: Sequence[str] = ()) -> Environment:
        """Of this process.

        Args:
            accelerators: names of its GPUs, which only torch knows.
        """
        return Environment(
            versions=_versions(),
            commit=_commit(Path(__file__).resolve().parents[3]),
            system=platform.platform(),
            processor=_processor(),
            cores=available_cores(),
            memory_bytes=psutil.virtual_memory().total,
            accelerators=list(accelerators),
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
    def here(accelerator_bytes: int | None = None) -> PeakMemory:
        """Of this process.

        Args:
            accelerator_bytes: of its GPU, which only torch knows.
        """
        return PeakMemory(_peak_resident(), accelerator_bytes)


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
        # git, with fixed arguments and no shell.
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
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
