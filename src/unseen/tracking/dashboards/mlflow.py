"""MLflow: a local SQLite store by default, since it refuses a plain folder; a resumed run stays one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from unseen.tracking.dashboards.card import RunCard
from unseen.tracking.dashboards.loggers import begin_one, finish_one, log_pictures_one
from unseen.tracking.record import flattened

STATES = {"success": "FINISHED", "interrupted": "KILLED"}
"""Status → MLflow's; anything else has failed."""

ID_TAG = "unseen.id"
LONGEST_VALUE = 500
AT_ONCE = 100  # MLflow takes no more in one call


class MlflowLogger(MLFlowLogger):
    """Lightning's, but a run is over when it is measured, not when its training ends."""

    def finalize(self, status: str = "success") -> None:
        """Lightning calls this at the end of training: checkpoints that were asked for go up."""
        if self._initialized and self._checkpoint_callback:
            self._scan_and_log_checkpoints(self._checkpoint_callback)


def mlflow_logger(
    card: RunCard,
    *,
    experiment: str,
    tracking_uri: str,
    run_name: str | None = None,
    job_type: str = "train",
    tags: Mapping[str, str] | None = None,
    log_model: Literal["all"] | bool = False,
) -> MLFlowLogger:
    """An MLflow logger.

    Args:
        card: the run.
        experiment: MLflow's experiment.
        tracking_uri: a server (`http://…`) or a local database (`sqlite:///runs/mlflow.db`).
        run_name: none for the run's own.
        job_type: `train`, or `tune` for the trials of a search.
        tags: beside those of data, loss, ablation, seed, group and job type.
        log_model: keep checkpoints as artifacts: at the end, or `all` of them as they are written.

    Raises:
        ValueError: MLflow is not installed, or refuses the store.
    """
    try:
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise ValueError(
            "logger=mlflow: MLflow is not installed. Run `pip install 'unseen-dml[mlflow]'`."
        ) from error
    labels = {**card.labels, "group": card.group, "job_type": job_type, **(tags or {})}
    arguments: dict[str, Any] = {
        "experiment_name": experiment,
        "run_name": run_name or card.name,
        "tracking_uri": tracking_uri,
        "artifact_location": _artifacts(tracking_uri),
        "log_model": log_model,
    }
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return MlflowLogger(**arguments)
    identity = card.identify()
    try:
        logger = MlflowLogger(**arguments, tags={**labels, ID_TAG: identity.id})
        if identity.continues:
            logger._run_id = _earlier(logger, experiment, identity.id)
    except MlflowException as error:
        raise ValueError(f"logger.mlflow.tracking_uri={tracking_uri}: {error}") from error
    return logger


def _artifacts(tracking_uri: str) -> str | None:
    """Beside a local database, which must have a folder; a server has its own place."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    folder = Path(tracking_uri.removeprefix("sqlite:///")).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "mlflow_artifacts").as_uri()


def _earlier(logger: MlflowLogger, experiment: str, id: str) -> str | None:
    """The run of this id, which goes on; none where it was not logged to this store."""
    client = logger._mlflow_client
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.`{ID_TAG}` = '{id}'", max_results=1)
    if not runs:
        return None
    client.update_run(runs[0].info.run_id, status="RUNNING")
    return str(runs[0].info.run_id)


@begin_one.register
def _(logger: MlflowLogger, settings: Mapping[str, Any]) -> None:
    """Parameters cannot change: of a run that goes on, only new ones are written."""
    from mlflow.entities import Param

    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    known = logger.experiment.get_run(logger.run_id).data.params
    entries = [
        Param(key, str(value)[:LONGEST_VALUE]) for key, value in flattened(settings) if key not in known
    ]
    for start in range(0, len(entries), AT_ONCE):
        logger.experiment.log_batch(logger.run_id, params=entries[start : start + AT_ONCE])


@log_pictures_one.register
def _(logger: MLFlowLogger, pictures: Mapping[str, Path]) -> None:
    for path in pictures.values():
        logger.experiment.log_artifact(logger.run_id, str(path), "pictures")


@finish_one.register
def _(logger: MlflowLogger, status: str) -> None:
    logger.finalize(status)
    if logger._initialized and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        logger.experiment.set_terminated(logger.run_id, STATES.get(status, "FAILED"))
