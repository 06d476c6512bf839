"""A search from what was typed to the experiment that it leaves: space, studies, trials, the best."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from unseen.config.command_line import building, check_overrides, config_folder
from unseen.config.freeze import Freezer, Frozen
from unseen.config.grid import listed, parse
from unseen.config.identity import plain
from unseen.config.own import divided, own_settings
from unseen.config.targets import instantiate
from unseen.config.values import UsageError
from unseen.files import replacing
from unseen.pictures import importance_bars
from unseen.sweep.job import Job
from unseen.sweep.process import STOPPED, interruptible
from unseen.sweep.search import OF_THE_RUN, Choice, Interval, Space, Study
from unseen.sweep.tables import trials_table
from unseen.tracking.redaction import redacted

OF_A_TRIAL = ("evaluation.test=false", "pictures=false", "callbacks=quiet")
"""A trial is judged by classes held out of training; test classes are not looked at, and nothing is drawn."""
AT_RANKS = {"recall_at": "recall_at", "precision_at": "precision_at", "knn_accuracy_at": "knn_accuracy"}
"""Key of `metrics` that lists ranks → how the names of its metrics begin."""
WHOLE = ("map_at_r", "r_precision", "mean_average_precision", "mrr", "nmi", "ami")
"""Keys of `metrics` that ask for the metric of their name."""
_freezing = threading.Lock()
"""Held while a trial is frozen: Hydra composes and resolves by what there is once in a process."""


class Sought(NamedTuple):
    """What was typed, by its use.

    Args:
        fixed: overrides of every trial, each of one value.
        space: key → what it may be.
    """

    fixed: list[str]
    space: Space


def tune(typed: Sequence[str], config_dir: str | None = None, config_name: str = "train") -> int:
    """Seek the best settings, in one study or in several of the same budget.

    Args:
        typed: overrides of the search itself (see `conf/tune.yaml`) and of its trials.
        config_dir: a user's own groups.
        config_name: primary config of a trial.

    Returns:
        0; 1 if no trial of a study came to a value; 130 if the search was stopped.

    Raises:
        UsageError: before anything runs: what was typed cannot work.
    """
    console = Console()
    settings, plans = planned(typed, config_dir, config_name)
    freezer = Freezer(config_name, config_dir)
    studies = [(_study(settings, plan, freezer, console), plan.fixed) for plan in plans]
    status = 0
    with interruptible() as stopped:
        for study, fixed in studies:
            console.print(f"{study.trials} trials in {escape(str(study.folder))}", soft_wrap=True)
            study.run(settings.workers)
            status = max(status, _conclude(study, fixed, config_dir, console))
            if stopped.is_set():
                console.print("Stopped. The same command goes on.")
                return STOPPED
    return status


def planned(
    typed: Sequence[str], config_dir: str | None = None, config_name: str = "train"
) -> tuple[DictConfig, list[Sought]]:
    """Settings of the search itself, and what each of its studies seeks; see `tune`.

    Raises:
        UsageError: what was typed cannot work.
    """
    own, of_trials = divided(typed, "tune")
    settings = _settings(own, config_dir)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        several, others = _each(settings, of_trials)
        words = [parse(word, "search") for word in (*settings.space.sought, *others)]
        # What tells studies apart is not sought, though a ready space seeks it.
        fixed, space = _sought([word for word in words if word.key_or_group not in settings.each])
    chosen = {*settings.each, *space, *(word.partition("=")[0] for word in fixed)}
    first = [] if "protocol" in chosen else ["protocol=holdout"]
    plans = [Sought([*first, *apart, *fixed], space) for apart in several]
    for plan in plans:
        _check(plan, config_name, config_dir)
    return settings, plans


def _settings(own: Sequence[str], config_dir: str | None) -> DictConfig:
    settings = own_settings(own, "tune", config_dir)
    for key in ("trials", "workers"):
        if settings[key] < 1:
            raise UsageError(f"{key}={settings[key]}: wanted at least 1.")
    if not settings.objectives:
        raise UsageError("objectives={}: wanted at least one, such as objectives.map_at_r=maximize.")
    return settings


def _each(settings: DictConfig, typed: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The overrides that tell the studies apart, for each study; and all others."""
    axes: dict[str, list[str]] = {}
    others = []
    for word in typed:
        override = parse(word, "search")
        if override.key_or_group in settings.each:
            axes[override.key_or_group] = _values(override)
        else:
            others.append(word)
    for key in settings.each:
        if key not in axes:
            raise UsageError(f"each=[{key}]: '{key}' has no values. Give them: {key}=a,b,c.")
    return [list(combination) for combination in itertools.product(*axes.values())], others


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise UsageError(f"{override.input_line}: an interval does not list values. Give key=a,b,c.")
    return [f"{key}={value}" for value in listed(override)]


def _sought(overrides: Sequence[Override]) -> Sought:
    """Of a key that is given twice the last counts: what is typed comes after the ready space."""
    fixed: dict[str, str] = {}
    space: dict[str, Interval | Choice] = {}
    for override in overrides:
        key = override.get_key_element()
        fixed.pop(key, None)
        space.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = override.input_line or ""
            continue
        try:
            space[key] = _part(override)
        except ValueError as error:
            raise UsageError(f"{override.input_line}: {error}") from error
    if not space:
        raise UsageError(
            "Nothing is sought: choose a ready space (space=rates), or give a key several values, such as "
            "'optimizer.learning_rates.head=tag(log,interval(1e-4,1e-2))'."
        )
    return Sought(list(fixed.values()), space)


def _part(override: Override) -> Interval | Choice:
    value = override.value()
    if isinstance(value, IntervalSweep):
        ends: list[Any] = [value.start, value.end]
        is_whole = all(isinstance(end, int) for end in ends)
        return Interval(ends[0], ends[1], "log" in value.tags, 1 if is_whole else None)
    values = listed(override)
    if len(values) < 2:
        raise UsageError(f"{override.input_line}: gives no choice.")
    return Choice(values)


def _study(settings: DictConfig, sought: Sought, freezer: Freezer, console: Console) -> Study:
    """A study, ready to run."""
    fixed = sought.fixed
    root = Path(settings.tune_folder).expanduser()
    some = [f"{key}={part.typed[0]}" for key, part in sought.space.items()]
    first = freezer.freeze([*fixed, *some, *OF_A_TRIAL], root)
    _check_objectives(settings.objectives, first)
    _check_held_out(first)
    _check_learns(first, sought.space)
    folder = root.resolve() / _name(first, sought, settings)

    def freeze(values: Sequence[str]) -> Job:
        with _freezing:
            one = freezer.freeze([*fixed, *values, *OF_A_TRIAL], folder / "trials")
            for logger in one.config.logger.values():
                if "job_type" in logger:
                    logger.job_type = "tune"
            one.save()
        return one.job

    with building():
        return Study(
            folder=folder,
            space=sought.space,
            objectives=plain(settings.objectives),
            trials=settings.trials,
            freeze=freeze,
            sampler=instantiate(settings.optuna.sampler),
            pruner=instantiate(settings.optuna.get("pruner")),
            seed=settings.search_seed,
            lock=settings.lock,
            say=lambda line: console.print(line, markup=False, soft_wrap=True),
        )


def _check(sought: Sought, config_name: str, config_dir: str | None) -> None:
    words = [f"{key}={','.join(part.typed)}" for key, part in sought.space.items()]
    check_overrides(config_name, [*sought.fixed, *words], config_dir)


def _check_objectives(objectives: Iterable[str], first: Frozen) -> None:
    known = [*metric_names(plain(first.config.metrics)), *OF_THE_RUN]
    for name in objectives:
        if name not in known:
            raise UsageError(
                f"objectives.{name}: trials are not measured by it. Choices: {', '.join(known)}. "
                "Others are asked for by their own key, such as metrics.nmi=true or metrics.recall_at=[1,16]."
            )


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """What a run with these `metrics` is measured by, without torch that measures it.

    Args:
        metrics: keyword arguments of `unseen.retrieval.evaluate`; what is left out is the default.
    """
    default = OmegaConf.load(config_folder() / "metrics" / "default.yaml")
    assert isinstance(default, DictConfig)
    given = {**plain(default), **metrics}
    ranked = [f"{name}_{rank}" for key, name in AT_RANKS.items() for rank in given[key] or ()]
    return [*ranked, *(name for name in WHOLE if given[name])]


def _check_held_out(first: Frozen) -> None:
    if first.validates:
        return
    choice = first.config.choices.get("protocol")
    raise UsageError(
        f"protocol={choice}: holds no training classes out, so that only test classes could judge a trial. "
        "Choose protocol=holdout (the default here) or protocol=folds."
    )


def _check_learns(first: Frozen, space: Space) -> None:
    if not first.config.backbone.frozen:
        return
    # Here, because it imports torch, which other refusals need not wait for.
    from unseen.config.frozen import RATE, check_frozen

    try:
        check_frozen(first.config)
    except ValueError as error:
        alone = (
            " Of the rates, seek the head's alone: "
            "space=none 'optimizer.learning_rates.head=tag(log,interval(1e-4,1e-2))'."
        )
        raise UsageError(f"{error}{alone if RATE in space else ''}") from error


def _name(first: Frozen, sought: Sought, settings: DictConfig) -> str:
    """What is tuned, for people and exactly: equal names, one study."""
    measured = plain(first.config.metrics)
    about = [first.job.key, repr(sorted(sought.space.items())), plain(settings.objectives), measured]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    readable, _, _ = first.job.folder.name.rpartition("_")
    return f"{readable}_{digest}"


def _conclude(study: Study, fixed: Sequence[str], config_dir: str | None, console: Console) -> int:
    """Tables, pictures and experiments of what is known by now."""
    complete = study.complete
    if not complete:
        console.print("No trial came to a value.")
        return 1
    console.print(trials_table(study))
    if importances := study.importances():
        importance_bars(study.folder / "importance.png", importances, next(iter(study.objectives)))
    ended, best = study.ended, study.best
    names = ["best"] if len(best) == 1 else [f"trial_{trial.number}" for trial in best]
    found = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in best]
    left_out: list[str] = []
    for name, overrides in zip(names, found, strict=True):
        left_out = write_experiment(study.folder / "experiment" / f"{name}.yaml", overrides, ended)
    words = ["--config-dir", str(study.folder), f"experiment={names[0]}"]
    if config_dir:
        words = beside_own_groups(config_dir, found[0], ended)
    console.print(
        f"Chosen by {ended} trials. Train with it, on all training classes:\n"
        f"  unseen train {shlex.join(words)}",
        soft_wrap=True,
        markup=False,
    )
    if left_out:
        console.print(
            f"Left out: {shlex.join(left_out)}, which no experiment can choose.", soft_wrap=True, markup=False
        )
    return 0


def beside_own_groups(config_dir: str, overrides: Sequence[str], trials: int) -> list[str]:
    """What to type in place of an experiment that refers to a user's own groups, as one folder can be named.

    Args:
        config_dir: of the user's own groups.
        overrides: as typed; protocol and `debug` are left to whoever trains.
        trials: that chose them.
    """
    of_run = [word for word in overrides if not (_is_of("protocol", word) or _is_of("debug", word))]
    return ["--config-dir", config_dir, *of_run, f"tuning_trials={trials}"]


def _is_of(group: str, override: str) -> bool:
    return override.lstrip("+~").partition("=")[0].partition(".")[0] == group


def write_experiment(path: Path, overrides: Sequence[str], trials: int) -> list[str]:
    """An `experiment` that has the effect of overrides.

    Args:
        path: YAML to write.
        overrides: as typed; the protocol is left to whoever trains.
        trials: that chose them.

    Returns:
        Those that it cannot have: a choice of `debug`, which is made after that of the experiment.
    """
    added: list[Any] = []
    changed: list[Any] = []
    left_out = []
    content = OmegaConf.create({"tuning_trials": trials})
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for word in overrides:
            override = parse(word, "search")
            key = override.key_or_group
            if _is_of("protocol", key):
                continue
            if _is_of("debug", key):
                left_out.append(word)
            elif key == "experiment":  # beside this one, and before what was typed
                added.insert(0, override.value())
            elif loader.get_group_options(key):
                place = f"/{key}@{override.package}" if override.package else f"/{key}"
                if override.is_add():
                    added.append({place: override.value()})
                else:
                    changed.append({f"override {place}": override.value()})
            else:
                OmegaConf.update(content, key, override.value(), force_add=True)
    groups = [*added, *changed]  # in Hydra's order
    shown: dict[str, Any] = {"defaults": groups} if groups else {}
    # A reference to another key stays one: what it refers to is not in here, and may change.
    own = redacted(OmegaConf.to_container(content, resolve=False))
    text = OmegaConf.to_yaml(OmegaConf.create({**shown, **own}))
    head = (
        f"# @package _global_\n# Chosen by {trials} trials of `unseen tune` on held-out training classes.\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(head + text, encoding="utf-8")
    return left_out
