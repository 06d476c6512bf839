"""`metrics.csv` of a run, which is whole also when the run was resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from unseen.tracking.dashboards.card import RunCard
from unseen.tracking.dashboards.loggers import log_results_one

NAME = "metrics.csv"


class MetricsFile(CSVLogger):
    """Lightning's, which deletes what it finds; this one keeps what a run logged before it was resumed.

    What was logged after the checkpoint was written, by the part that did not end well, is logged again.

    Args:
        folder: of the run.
        earlier: the file of the part that is resumed; none for a run of its own.
    """

    def __init__(self, folder: Path, earlier: Path | None = None) -> None:
        super().__init__(folder, name="", version="")
        self._rows = _read(earlier) if earlier is not None else []
        self._goes_on = bool(self._rows)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        is_new = self._experiment is None
        writer = super().experiment
        if is_new and self._rows:
            writer.metrics = list(self._rows)
            writer.save()
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """The first step of a run that goes on says which rows are of its past."""
        if self._goes_on and step is not None:
            self._forget_from(step)
            self._goes_on = False
        super().log_metrics(dict(metrics), step)

    def _forget_from(self, step: int) -> None:
        kept = [row for row in self._rows if int(row["step"]) < step]
        writer = self.experiment
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics, writer.metrics_keys = kept, []
        writer.save()


@log_results_one.register
def _(logger: MetricsFile, results: Mapping[str, float], step: int) -> None:
    """Costs are no metrics; the record beside the file has them."""
    metrics = {name: value for name, value in results.items() if not name.startswith("cost/")}
    logger.log_metrics(metrics, step)


def metrics_file(card: RunCard) -> MetricsFile:
    """The file of a run.

    Args:
        card: the run.
    """
    origin = None if card.resume_from is None else card.resume_from.resolve().parents[1]
    return MetricsFile(card.folder, None if origin is None else origin / NAME)


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows with what they have; none of a file that is not there or is no such table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return []
    return [row for row in rows if row.get("step", "").isdigit()]
