"""A search over hyper-parameters: Optuna proposes, each trial is a job of its own."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from unseen.sweep.job import LOG, Job, State
from unseen.sweep.launchers.local import shared_threads
from unseen.sweep.lock import BUSY, BusyError, awaited, holder, locked
from unseen.sweep.process import run, was_stopped
from unseen.tracking.record import RunRecord

JOURNAL = "journal.log"
"""In a study's folder: every trial, as Optuna keeps it; several processes may write it at once."""
LOCKS = "locks"
"""In a study's folder: what processes that take part in it hold, one at a time."""
PAUSE = 1.0
"""Seconds between two looks at a job that another process has."""


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones in steps where `step` is given.

    Raises:
        ValueError: there is nothing between the ends, or a logarithm of what has none.
    """

    low: float
    high: float
    log: bool = False
    step: int | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"interval({self.low},{self.high}): wanted a lower and a higher end.")
        if self.log and self.low <= 0:
            raise ValueError(f"interval({self.low},{self.high}): a logarithmic one starts above 0.")

    @property
    def typed(self) -> tuple[str, ...]:
        """Values of it as one would type them: an end stands for all."""
        return (str(self.low),)

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna calls it."""
        if self.step is None:
            return FloatDistribution(self.low, self.high, log=self.log)
        return IntDistribution(int(self.low), int(self.high), log=self.log, step=self.step)


@dataclass(frozen=True)
class Choice:
    """One of several values, as they are typed."""

    values: tuple[str, ...]

    @property
    def typed(self) -> tuple[str, ...]:
        """All values."""
        return self.values

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna calls it."""
        return CategoricalDistribution(self.values)


Space = Mapping[str, Interval | Choice]
"""Key → what it may be."""


class _PrunedError(Exception):
    """The trial is worse than others were at its epoch."""


@dataclass
class Study:
    """Optuna's study in a folder, and what a trial of it is.

    Args:
        folder: of the study; holds all that it knows, so that the same folder goes on.
        space: what is sought.
        objectives: metric of the validation classes, or `seconds`, `parameters` or `memory` → `maximize` or
            `minimize`.
        trials: budget: no more are begun, over all processes; pruned and failed ones count.
        freeze: values, as overrides → their job, frozen in its folder. It raises `ValueError` for values that
            cannot work together.
        sampler: called with `seed`; proposes.
        pruner: ends trials early, where there is one objective; none lets all come to their end.
        seed: of the proposals.
        lock: see `unseen.sweep.lock.locked`.
        say: called with a line whenever a trial ends.

    Raises:
        ValueError: an objective or its direction is unknown.
    """

    folder: Path
    space: Space
    objectives: Mapping[str, str]
    trials: int
    freeze: Callable[[Sequence[str]], Job]
    sampler: Callable[..., optuna.samplers.BaseSampler]
    pruner: optuna.pruners.BasePruner | None
    seed: int = 0
    lock: str = "auto"
    say: Callable[[str], None] = print
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # we say what there is to say
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        self.study = optuna.create_study(
            storage=storage,
            study_name=self.folder.name,
            directions=[_direction(name, wanted) for name, wanted in self.objectives.items()],
            pruner=self.pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._asking = Lock()

    def run(self, workers: int = 1) -> None:
        """Go on until the budget is spent or the process is asked to stop; trials left behind come first.

        Args:
            workers: trials at once. None waits for another: who is free takes the next.
        """
        environment = shared_threads(workers)
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(self._work, environment) for _ in range(workers)]:
                done.result()

    def _work(self, environment: Mapping[str, str]) -> None:
        while not was_stopped():
            with ExitStack() as claim:
                if (trial := self._next(claim)) is None:
                    return
                self._attempt(trial, environment)

    def _next(self, claim: ExitStack) -> Trial | None:
        """A trial whose process died, else a new one, while the budget lasts.

        Args:
            claim: holds the trial's lock from here on, so that nobody takes the trial for left behind.
        """
        # Of all processes one at a time: the budget, the seed and the proposal are of the trials there are.
        with self._asking, awaited(self._place("asking"), self.lock, was_stopped) as is_alone:
            if not is_alone:
                return None
            known = self.study.get_trials(deepcopy=False)
            for left in known:
                if (trial := self._adopted(left, claim)) is not None:
                    return trial
            if len(known) >= self.trials:
                return None
            # Of the trial's own, so that proposals go on after a restart instead of starting over.
            seed = np.random.SeedSequence([self.seed, len(known)]).generate_state(1)[0]
            self.study.sampler = self.sampler(seed=int(seed))
            trial = self.study.ask({key: part.distribution for key, part in self.space.items()})
            self._claimed(trial.number, claim)
            return trial

    def _adopted(self, left: FrozenTrial, claim: ExitStack) -> Trial | None:
        """A trial that another process left behind; none if it is not such a one."""
        if not _is_open(left) or not self._claimed(left.number, claim):
            return None
        # Whoever was at it may have told its end, and left, since it was looked at.
        if not _is_open(self.study.get_trials(deepcopy=False)[left.number]):
            claim.close()
            return None
        return Trial(self.study, left._trial_id)

    def _claimed(self, number: int, claim: ExitStack) -> bool:
        """Whether a trial is this worker's now; not, where another one is at it."""
        try:
            claim.enter_context(locked(self._place(f"trial_{number}"), self.lock))
        except BusyError:
            return False
        return True

    def _place(self, name: str) -> Path:
        """The folder of a lock that processes share."""
        folder = self.folder / LOCKS / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _attempt(self, trial: Trial, environment: Mapping[str, str]) -> None:
        """One trial to its end, unless another process tells that first."""
        try:
            self._finish(trial, environment)
        except UpdateFinishedTrialError:
            self._say(trial, "another process told its end")

    def _finish(self, trial: Trial, environment: Mapping[str, str]) -> None:
        overrides = [f"{key}={value}" for key, value in trial.params.items()]
        try:
            job = self.freeze(overrides)
        except ValueError as error:
            self._fail(trial, str(error))
            return
        trial.set_user_attr("folder", str(job.folder))
        watch = _Watch(trial, job, self._pruned_by)
        try:
            status = _finished(job, self.lock, environment, watch)
        except _PrunedError:
            self._tell(trial, f"pruned after epoch {watch.epoch + 1}", state=TrialState.PRUNED)
            if holder(job.folder) is None:  # else it waited for a trial that is the same job, and goes on
                _forget_weights(job)
            return
        if status is None or was_stopped():
            return  # it goes on with the next start
        if status != 0:
            self._fail(trial, job.error or f"left with status {status}; see {job.folder / LOG}")
            return
        watch.read()  # what came after the last look: later trials are measured by it
        self._conclude(trial, job)

    def _conclude(self, trial: Trial, job: Job) -> None:
        record = RunRecord.load(job.folder / "record.json")
        try:
            values = [value_of(record, name) for name in self.objectives]
        except ValueError as error:
            self._fail(trial, str(error))
            return
        text = ", ".join(
            f"{name} {shown(name, value)}" for name, value in zip(self.objectives, values, strict=True)
        )
        self._tell(trial, text, values=values)
        _forget_weights(job)

    def _fail(self, trial: Trial, error: str) -> None:
        trial.set_user_attr("error", error)
        self._tell(trial, f"failed: {error.splitlines()[0] if error else ''}", state=TrialState.FAIL)

    def _tell(
        self, trial: Trial, text: str, values: Sequence[float] | None = None, state: TrialState | None = None
    ) -> None:
        # Another process may have found the same end first.
        self.study.tell(trial, values, state=state, skip_if_finished=True)
        self._say(trial, text)

    def _say(self, trial: Trial, text: str) -> None:
        self.say(f"{self.ended}/{self.trials}  trial {trial.number}: {text}")

    @property
    def ended(self) -> int:
        """Trials that came to an end, whichever."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    @property
    def _pruned_by(self) -> str | None:
        """The validation metric whose course over epochs may end a trial."""
        names = list(self.objectives)
        return names[0] if len(names) == 1 and names[0] not in OF_THE_RUN else None

    @property
    def best(self) -> list[FrozenTrial]:
        """The best trial; of several objectives those that none is better than in all."""
        if len(self.objectives) == 1:
            return self.complete[:1]
        return list(self.study.best_trials)

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials that came to a value, the best of the first objective first."""
        done = [one for one in self.study.get_trials(deepcopy=False) if one.state == TrialState.COMPLETE]
        sign = -1 if next(iter(self.objectives.values())) == "maximize" else 1
        return sorted(done, key=lambda one: sign * one.values[0])

    def importances(self) -> dict[str, float]:
        """Key → share of the first objective's variance over the trials (fANOVA, Hutter et al. 2014).

        Empty where too few trials came to a value, or all to the same.
        """
        done = self.complete
        if len(done) < 4 or len({one.values[0] for one in done}) == 1 or len(self.space) < 2:
            return {}
        # By name, because Optuna's default is another one, which asks what makes low values low.
        fanova = FanovaImportanceEvaluator(seed=0)
        found = get_param_importances(self.study, evaluator=fanova, target=lambda trial: trial.values[0])
        return {key: float(share) for key, share in found.items()}


OF_THE_RUN: Mapping[str, Callable[[RunRecord], float | None]] = {
    "seconds": lambda record: record.seconds.get("train_total"),
    "parameters": lambda record: record.parameters,
    "memory": lambda record: record.peak_memory.accelerator_bytes or record.peak_memory.host_bytes,
}
"""What a trial may be judged by beside metrics: seconds of training, parameters, peak memory in bytes."""


def _direction(objective: str, wanted: str) -> optuna.study.StudyDirection:
    try:
        return optuna.study.StudyDirection[wanted.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"objectives.{objective}={wanted}: choices are maximize, minimize.") from None


def value_of(record: RunRecord, objective: str) -> float:
    """What a run is worth.

    Raises:
        ValueError: the record does not have it, or it is not a number.
    """
    if objective in OF_THE_RUN:
        value = OF_THE_RUN[objective](record)
    else:
        value = record.metrics.get("validation", {}).get(objective)
    if value is None or not math.isfinite(value):
        names = [*record.metrics.get("validation", {}), *OF_THE_RUN]
        raise ValueError(f"objectives.{objective}: the trial has no such value. It has: {', '.join(names)}.")
    return float(value)


def shown(objective: str, value: float) -> str:
    """For people: metrics in percent."""
    return f"{value:,.0f}" if objective in OF_THE_RUN else f"{100 * value:.2f} %"


def _is_open(trial: FrozenTrial) -> bool:
    """Whether nobody has told a trial's end, and no process is at its job, whose search may have died."""
    folder = trial.user_attrs.get("folder")
    return trial.state == TrialState.RUNNING and (folder is None or holder(Path(folder)) is None)


def _finished(job: Job, lock: str, environment: Mapping[str, str], look: Callable[[], None]) -> int | None:
    """Run a job, or wait for the process that has it: two trials may be one job."""
    while True:
        status = run(job, lock, environment, look)
        if status != BUSY:
            return status
        while holder(job.folder) is not None:
            if was_stopped():
                return None
            look()
            time.sleep(PAUSE)
        if job.outcome == State.DONE:
            return 0
        time.sleep(PAUSE)


def _forget_weights(job: Job) -> None:
    """A trial that was judged is never gone on with; the best settings are trained anew, on all classes."""
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)


class _Watch:
    """Reads the course of a job's validation metric, and ends the job when the pruner says so."""

    def __init__(self, trial: Trial, job: Job, metric: str | None) -> None:
        self._trial = trial
        self._file = job.folder / "metrics.csv"
        self._metric = metric
        self._changed = 0.0
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        self.epoch = max(known, default=-1)

    def __call__(self) -> None:
        if self.read() and self._trial.should_prune():
            raise _PrunedError

    def read(self) -> bool:
        """Report new epochs; whether there were any."""
        before = self.epoch
        if self._metric is None:
            return False
        try:
            changed = self._file.stat().st_mtime
        except FileNotFoundError:
            return False
        if changed == self._changed:
            return False
        self._changed = changed
        for epoch, value in course(self._file, f"validation/{self._metric}").items():
            if epoch > self.epoch:
                self.epoch = epoch
                self._trial.report(value, epoch)
        return self.epoch > before


def course(path: Path, name: str) -> dict[int, float]:
    """Epoch → value of one metric, out of a run's `metrics.csv`; rows that are half written are left out."""
    found: dict[int, float] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            with suppress(TypeError, ValueError, KeyError):
                found[int(row["epoch"])] = float(row[name])
    return found
