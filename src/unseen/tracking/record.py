"""The record of a run, `record.json`: all that a comparison or a report ever reads of it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from unseen.files import replacing, storable
from unseen.tracking.environment import Environment, PeakMemory
from unseen.tracking.redaction import redacted

SCHEMA = 2
"""Raised when a field changes its meaning or goes away; a new field alone does not raise it.

2: the gap is a mean over draws of galleries.
"""

INCIDENTAL = (
    "run_folder", "resume_from", "save_every", "choices", "overrides", "logger", "callbacks", "pictures",
    "check", "check_from", "tuning_trials", "metrics", "evaluation", "backbone.weights",
    "trainer.accelerator", "trainer.devices", "trainer.default_root_dir", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.log_every_n_steps",
    "data.root", "data.path", "data.source", "data.download", "data.workers", "data.cache", "data.cache_dir",
    "data.evaluation_batch_size", "threads", "compile",
)  # fmt: skip
"""Keys of the config that change where a run goes or what is measured of it, and not what it trains.

Files are not in it by their paths: the split's fingerprint and the hash of the weights stand for them.
"""


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked for, what came out, what it took.

    Args:
        choices: Hydra group → choice, such as `loss` → `triplet`.
        seed: of the run.
        config: resolved, as plain data.
        split: fingerprint of the split (hex).
        manifest: content hash of the manifest (hex).
        metrics: split → metric → value; NaN where a metric is not defined. Empty for a run that failed.
        seconds: stage → duration; `train_total` counts what earlier runs spent that this one resumed.
        images_per_second: in training; NaN when it was not measured.
        overrides: as typed.
        job_key: see `job_key`.
        status: `success`, `failed` or `interrupted`.
        error: of a run that failed, type and message.
        spread: split → metric → standard deviation over draws of matched galleries.
        intervals: split → metric → (low, high), 95 % over test classes.
        participation: split → in how many directions its classes differ in the embedding.
        chosen_epoch: whose weights were measured, counted from 1.
        adversary_strength: λ at the end of training; none without an adversary.
        steps: optimiser steps at the end of training.
        parameters: number of trained parameters of the embedder.
        weights: SHA-256 (hex) of the file of initial weights; none without a file.
        resumed_from: the checkpoint that the run went on from.
        per_class: metric → class name → value on the unseen classes.
        peak_memory: at the end of the run.
        environment: where it took place.
        finished: end of the run, ISO 8601 in UTC.
        schema: version of this form.

    Values of single queries are in `queries.npz` beside the record (see `save_queries`).
    """

    choices: dict[str, str]
    seed: int
    config: dict[str, Any]
    split: str
    manifest: str
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    images_per_second: float = math.nan
    overrides: list[str] = field(default_factory=list)
    job_key: str = ""
    status: str = "success"
    error: str | None = None
    spread: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    participation: dict[str, float] = field(default_factory=dict)
    chosen_epoch: int | None = None
    adversary_strength: float | None = None
    steps: int | None = None
    parameters: int | None = None
    weights: str | None = None
    resumed_from: str | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_memory: PeakMemory = field(default_factory=PeakMemory.here)
    environment: Environment = field(default_factory=Environment.here)
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write strict JSON, atomically. JSON knows no NaN and no infinity: both become null.

        Raises:
            TypeError: the config holds something that is not plain data.
        """
        content = asdict(replace(self, error=redacted(self.error)))
        text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(storable(text), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> RunRecord:
        """Read what `save` wrote; a metric that is null becomes NaN.

        Minor fields may be missing (an older version wrote it) or unknown (a newer one did).

        Raises:
            ValueError: the file is not a record, or one of another schema.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            schema = content["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"'{path}' is not the record of a run: {error!r}.") from error
        if schema != SCHEMA:
            raise ValueError(
                f"'{path}' has schema {schema}, this version of unseen reads {SCHEMA}: "
                "read it with the version that wrote it, or run it again."
            )
        try:
            return _from_json(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"'{path}' is not a whole record: {error!r}.") from error


def job_key(config: Mapping[str, Any], split: str, weights: str | None, version: str) -> str:
    """Names what a run trains: equal keys, equal runs (but for the machine).

    Args:
        config: resolved, as plain data; what `INCIDENTAL` names does not count.
        split: fingerprint of the split.
        weights: hash of the file of initial weights.
        version: of the package.

    Returns:
        16 hexadecimal digits of a SHA-256.
    """
    parts = [essential(config), split, weights or config.get("backbone", {}).get("weights"), version]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value of everything that changes what is trained."""
    skipped = tuple(f"{key}." for key in INCIDENTAL)
    return {key: value for key, value in flattened(config) if not f"{key}.".startswith(skipped)}


def flattened(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf."""
    for name, value in config.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from flattened(value, key)
        else:
            yield key, value


def _from_json(content: dict[str, Any]) -> RunRecord:
    required = {
        entry.name
        for entry in fields(RunRecord)
        if entry.default is MISSING and entry.default_factory is MISSING
    }
    # Their defaults are of this process, which is not the one that wrote the record.
    required |= {"peak_memory", "environment", "finished"}
    missing = sorted(required - content.keys())
    if missing:
        raise KeyError(missing[0])
    known = {entry.name: content[entry.name] for entry in fields(RunRecord) if entry.name in content}
    for name in ("metrics", "spread", "per_class"):
        known[name] = {
            split: {metric: _number(value) for metric, value in values.items()}
            for split, values in known.get(name, {}).items()
        }
    known["intervals"] = {
        split: {metric: (_number(low), _number(high)) for metric, (low, high) in values.items()}
        for split, values in known.get("intervals", {}).items()
    }
    known["seconds"] = {name: _number(value) for name, value in known["seconds"].items()}
    known["images_per_second"] = _number(known.get("images_per_second"))
    for name, kind in (("peak_memory", PeakMemory), ("environment", Environment)):
        known[name] = kind(**{entry.name: known[name].get(entry.name) for entry in fields(kind)})
    _check_kinds(known)
    return RunRecord(**known)


def _check_kinds(known: Mapping[str, Any]) -> None:
    """Refuse what is of another kind than its field, so that who reads records need not ask.

    Raises:
        TypeError: naming the field.
    """
    for name, kinds in _kinds().items():
        if name in known and not isinstance(known[name], kinds):
            raise TypeError(f"{name} is a {type(known[name]).__name__}")


@functools.cache
def _kinds() -> dict[str, tuple[type, ...]]:
    """Field → what it may be; once, as thousands of records may be read."""
    hints = get_type_hints(RunRecord)
    several = {
        name: get_args(hint) if isinstance(hint, UnionType) else (hint,) for name, hint in hints.items()
    }
    return {name: tuple(get_origin(kind) or kind for kind in kinds) for name, kinds in several.items()}


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


def save_queries(path: Path, columns: Mapping[str, Any]) -> None:
    """Write the values of single queries as a compressed NumPy archive, atomically.

    Args:
        path: ends in `.npz`.
        columns: name → `(N,)` values: `ids` (rows of the manifest), `labels`, and a column for each metric;
            `neighbours` (rows of the manifest) and `similarities` `(N, k)`; `position` `(N, 2)`.
    """
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in columns.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
