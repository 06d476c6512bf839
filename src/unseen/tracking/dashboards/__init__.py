"""What a dashboard is shown of a run: its settings, its results, its pictures, its worst queries, its end.

Every function takes all loggers of a run and leaves to each what it can show: functions of one logger are
`singledispatch`, so that a dashboard is added by registering its class (see `wandb.py`, `mlflow.py` and
`tensorboard.py` beside this file), and Lightning's own logger objects are served like those of `logger=…`.
"""

from unseen.tracking.dashboards import metrics_file, mlflow, tensorboard, wandb
from unseen.tracking.dashboards.card import RunCard
from unseen.tracking.dashboards.loggers import (
    begin,
    finish,
    log_errors,
    log_pictures,
    log_projection,
    log_results,
    shows_errors,
)

__all__ = [
    "RunCard",
    "begin",
    "finish",
    "log_errors",
    "log_pictures",
    "log_projection",
    "log_results",
    "metrics_file",
    "mlflow",
    "shows_errors",
    "tensorboard",
    "wandb",
]
