"""The look at every image before a long run: refuses broken images and tests that leak, once a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from unseen.data.cache import sources
from unseen.data.inspect.preflight import watched_preflight
from unseen.data.module import DataModule


def look_before(
    data: DataModule,
    *,
    rules: Mapping[str, Any],
    crop_to_box: bool,
    cache_dir: Path,
    report_folder: Path,
    check_from: int | None,
    epochs: int | None,
) -> None:
    """Before a long run, look at its images, unless the same were looked at by the same rules before.

    Args:
        data: whose images are looked at.
        rules: what the look minds.
        crop_to_box: whether images are cut to their boxes.
        cache_dir: remembers what was looked at.
        report_folder: gets the report.
        check_from: images (× epochs) from which a run is long; none never looks.
        epochs: of the run; none or a negative number for a run without end.

    Raises:
        ValueError: the data must not be trained on.
    """
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    # Of several processes one looks for all.
    if not is_first or not data.reads_files or not is_long(check_from, epochs, len(data.split.train)):
        return
    passed = cache_dir.expanduser() / "checked" / _checked_key(data, {**rules, "crop_to_box": crop_to_box})
    if (passed / "report.json").is_file():
        return
    report = watched_preflight(
        data.manifest,
        rules,
        Console(stderr=True),
        crop_to_box=crop_to_box,
        excluded=data.excluded,
        parts=data.split.parts,
    )
    report.write(report_folder)
    if report.errors:
        raise ValueError(f"{report.errors[0]} The report is in {report_folder}.")
    report.write(passed)


def is_long(check_from: int | None, epochs: int | None, images: int) -> bool:
    """Whether a run of so many epochs over so many images is worth a look at all of them first."""
    if check_from is None:
        return False
    endless = epochs is None or epochs < 0
    return endless or images * max(1, epochs or 0) >= check_from


def _checked_key(data: DataModule, rules: Mapping[str, Any]) -> str:
    """Names what was looked at, where, by which rules: the look at anything else says nothing about it."""
    parts = (
        *(str(data.manifest.root.resolve()), data.split.fingerprint, sources(data.manifest)),
        json.dumps(dict(rules), sort_keys=True),
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
