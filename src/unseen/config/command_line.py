"""What every command shares: where the configuration lies, and errors in words before any work begins."""

from __future__ import annotations

import copy
import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from unseen.config.groups import check_own, choices, chosen_by, overview, read_groups
from unseen.config.quoting import quoted
from unseen.config.targets import check_logging, check_targets
from unseen.config.values import UsageError, check_given, check_type, check_value
from unseen.files import replacing
from unseen.tracking.redaction import redacted

# Keys that take more than the type of their default: "auto" and lists of devices.
SEVERAL_TYPES = {"trainer.devices"}
# Parents of keys that are read one by one: a new key beside them would do nothing. The root is one.
READ_BY_NAME = ("", "data")


def config_folder() -> Path:
    """The folder of YAML groups: inside an installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folder = next((path for path in (package / "conf", package.parents[1] / "conf") if path.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"No 'conf' folder beside {package}: the installation is broken; reinstall unseen-dml."
        )
    return folder


def command(
    config_name: str, first: Callable[[DictConfig], None] | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of a config into a command line: Hydra, with overrides checked first.

    Args:
        config_name: primary config in the configuration folder.
        first: looks at the resolved config before Hydra writes into the folder of the run.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            hide_secrets()
            with explained():
                check_complete(config)
                return function(config)

        run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(job)

        @functools.wraps(function)
        def main() -> None:
            arguments = get_args_parser().parse_intermixed_args()
            # Hydra itself wants its flags before the overrides; people type them in any order.
            flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
            sys.argv[1:] = [*flags, *arguments.overrides]
            name = arguments.config_name or config_name
            if arguments.help:
                with explained():
                    named = [word for word in arguments.overrides if "=" not in word]
                    print(help_text(name, arguments.config_dir, named))
                return
            with explained():
                if arguments.multirun:
                    if config_name != "train":
                        raise UsageError("--multirun: only training runs in sweeps, by `unseen sweep`.")
                    if arguments.cfg or arguments.info:
                        raise UsageError("--multirun: many configs. For one of them leave it out.")
                    from unseen.config.sweep import sweep

                    raise SystemExit(sweep(arguments.overrides, arguments.config_dir, name))
                if not arguments.hydra_help:
                    check_overrides(name, arguments.overrides, arguments.config_dir)
                    check_single(arguments.overrides)
                if first is not None and not (arguments.hydra_help or arguments.cfg or arguments.info):
                    first(config_of_run(name, arguments.overrides, arguments.config_dir))
            run()

        return main

    return decorate


def hide_secrets() -> None:
    """Of what Hydra has just written into the folder of the run: config, its own settings, and overrides."""
    settings = HydraConfig.get()
    if settings.output_subdir is None:
        return
    for path in (Path(settings.runtime.output_dir) / settings.output_subdir).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if (hidden := redacted(content)) != content:
            with replacing(path) as temporary:
                OmegaConf.save(OmegaConf.create(hidden), temporary)


def start_runs(config_name: str, what: str, start: Callable[[Sequence[str], str | None], int]) -> NoReturn:
    """The command line of what starts runs: it composes no config of its own to run in this process.

    Args:
        config_name: primary config, whose name is the command's.
        what: what it is, for people.
        start: overrides as typed, and a user's own groups → the status to leave with.
    """
    arguments = get_args_parser().parse_intermixed_args()
    with explained():
        if arguments.help:
            named = [word for word in arguments.overrides if "=" not in word]
            print(help_text(config_name, arguments.config_dir, named))
            raise SystemExit(0)
        if arguments.cfg or arguments.info:
            raise UsageError(
                f"A {what} has many configs. For one: unseen train <overrides of a job> --cfg job"
            )
        raise SystemExit(start(arguments.overrides, arguments.config_dir))


def help_text(config_name: str, config_dir: str | None = None, named: Sequence[str] = ()) -> str:
    """What a command does, its groups and their choices; of the groups that are named, each choice in words.

    Raises:
        UsageError: there is no such group.
    """
    if config_dir:
        check_own(Path(config_dir), config_folder())
    folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
    groups = {group.name: group for group in read_groups(folders, config_name)}
    for name in named:
        if name not in groups:
            hint = _suggestion(name, list(groups))
            raise UsageError(f"{name}: there is no such group{hint} Groups: {', '.join(groups)}.")
    if named:
        return "\n".join(line for name in named for line in groups[name].lines())
    template = str(OmegaConf.load(folders[0] / f"{config_name}.yaml").hydra.help.template)
    return template.replace("$APP_CONFIG_GROUPS", overview(list(groups.values())))


def searched(config_dir: str | None) -> list[str]:
    """What Hydra must be told of a user's own groups."""
    return [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []


@contextmanager
def explained() -> Iterator[None]:
    """Show a `UsageError` as one message on standard error and leave with status 2."""
    try:
        yield
    except UsageError as error:
        _fail(error)


@contextmanager
def building() -> Iterator[None]:
    """While objects are built from the config: turn what their constructors refuse into a `UsageError`."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        key = getattr(error, "full_key", None) or _key_in(str(error))
        if not _is_refusal(cause):
            raise
        names_itself = re.match(r"[a-z_]+(\.[a-z_]+)+=", str(cause))
        raise UsageError(f"{key}: {cause}" if key and not names_itself else str(cause)) from error
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _is_refusal(cause: BaseException | None) -> bool:
    # Lightning's own by name: to import it takes seconds, and not every command does.
    refuses = any(kind.__name__ == "MisconfigurationException" for kind in type(cause).__mro__)
    return refuses or isinstance(cause, ValueError | TypeError | OSError | ImportError)


def _key_in(message: str) -> str:
    """Hydra ends its message with a line `full_key: <key>`."""
    return next(
        (line.split(": ", 1)[1] for line in message.splitlines() if line.startswith("full_key: ")), ""
    )


def _fail(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def check_overrides(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Refuse unknown groups, choices and keys, and numbers that are not numbers, before anything is built.

    Args:
        config_name: primary config.
        overrides: as typed, `key=value`.
        config_dir: a user's own groups (`--config-dir`).

    Raises:
        UsageError: naming the key, the value and the choices.
    """
    if config_dir:
        check_own(Path(config_dir), config_folder())
    parsed = [_parse(override) for override in overrides]
    _check_values(parsed)
    own = searched(config_dir)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        groups = [override for override in parsed if _is_group(override)]
        for override in groups:
            _check_choice(override, config_name, config_dir)
        for chosen in _choices(groups):
            composed = _composed if config_dir else _composed_once
            try:
                whole = composed(config_name, (*own, *chosen))
            except HydraException as error:
                raise UsageError(in_a_line(error)) from error
            content = {key: value for key, value in whole.items() if key != "hydra"}
            _check_trusted(content, whole["hydra"])
            if config_dir:
                _check_files(content)
            for override in parsed:
                if override in groups or _is_hydras(override):
                    continue
                if override.is_add() or override.is_force_add():
                    _check_addition(override, content, overrides)
                elif override.type.name == "CHANGE":
                    _check_key(override, content, chosen)
                    # A stranger's 1 may be short for 1.0.
                    _check_type(override, content, whole=not config_dir)


def _check_values(overrides: Sequence[Override]) -> None:
    """Values that a key cannot take whatever the choices are.

    Raises:
        UsageError: naming what the key takes.
    """
    typed = {}  # of a key that is typed twice the last counts
    for override in overrides:
        if override.is_delete():
            continue
        typed[override.key_or_group] = _values(override)
        for value in typed[override.key_or_group]:
            check_given(override.key_or_group, value, override.input_line or "")
            check_value(override.key_or_group, value, override.input_line or "")
            check_targets(_nested(override.key_or_group, value))
    if -1 in typed.get("trainer.max_epochs", []) and "trainer.max_steps" not in typed:
        raise UsageError(
            "trainer.max_epochs=-1: learning rates follow a schedule, so training needs an end. "
            "Give a number of epochs, or +trainer.max_steps=<steps> beside it."
        )


def _check_files(content: Mapping[str, Any]) -> None:
    """What a user's own files give is looked at as what is typed, but that it may be an empty text."""
    for key, value in _leaves(content):
        if value != "???":
            check_value(key, value, f"{key}={'null' if value is None else value}")


def _leaves(content: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what they have that is no mapping."""
    for name, value in content.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from _leaves(value, key)
        else:
            yield key, value


def _nested(key: str, value: Any) -> dict[str, Any]:
    """As the config has it: `{"callbacks.mine": {"_target_": …}}` of `callbacks.mine._target_=…`."""
    above, _, name = key.rpartition(".")
    return {above: {name: value}} if above else {name: value}


def _check_trusted(content: Mapping[str, Any], hydras: Mapping[str, Any]) -> None:
    """Refuse what files of a configuration name outside trusted packages, for Hydra itself too."""
    check_targets(content)
    check_targets(hydras["callbacks"], "hydra.callbacks")
    for name in ("job_logging", "hydra_logging"):
        check_logging(hydras[name], f"hydra.{name}")


def _choices(groups: Sequence[Override]) -> Iterator[list[str]]:
    """The groups as typed; of a sweep, each choice in turn beside the first ones of the others."""
    first = [_plain(override, _values(override)[0]) for override in groups]
    yield first
    for place, override in enumerate(groups):
        for value in _values(override)[1:]:
            yield [*first[:place], _plain(override, value), *first[place + 1 :]]


def _composed(config_name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config of chosen groups, which is not to be changed, and under `hydra` Hydra's own."""
    config = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    # Unresolved: an interpolation may refer to what Hydra sets only when the job runs.
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


# Of the package's groups alone, which stay as they are while it runs; a user's own may change.
_composed_once = functools.lru_cache(maxsize=64)(_composed)


def _parse(override: str) -> Override:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise unreadable(override, error) from error
    if not parsed.key_or_group:
        raise UsageError(f"{override}: there is no key. Wanted key=value or group=choice.")
    return parsed


def unreadable(override: str, error: HydraException) -> UsageError:
    """What is said of an override that the grammar refuses."""
    reason = in_a_line(error)
    return UsageError(
        f"{override}: cannot be read ({reason}). Wanted key=value or group=choice.{_quoting(override)}"
    )


def in_a_line(error: Exception) -> str:
    """The first line of what Hydra or OmegaConf says: below it they speak of themselves."""
    return str(error).splitlines()[0].rstrip()


def check_single(overrides: Sequence[str]) -> None:
    """Refuse several values where one run is made.

    Raises:
        UsageError: naming them, and how one value that holds a comma is typed.
    """
    for word in overrides:
        if _parse(word).is_sweep_override():
            raise UsageError(
                f"{word}: several values, and this is one run. A run of each: unseen sweep.{_quoting(word)}"
            )


def _quoting(override: str) -> str:
    """How to type a value that holds what the grammar of overrides needs for itself, such as a path."""
    key, equals, value = override.partition("=")
    if not equals or "'" in override:
        return ""
    return f""" A value with ~, = or a comma stands in quotes, twice for the shell: "{key}='{value}'\""""


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.split(".")[0] in ("hydra", "hydra/launcher", "hydra/sweeper")


def _group_options(group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    options = GlobalHydra.instance().config_loader().get_group_options(group, kind)
    return sorted(option for option in options if not option.startswith("_"))


def _is_group(override: Override) -> bool:
    return bool(_group_options(override.key_or_group)) and not _is_hydras(override)


def _values(override: Override) -> list[Any]:
    """The value, or those of a sweep `a,b,c`."""
    value = override.value()
    return list(override.sweep_iterator()) if isinstance(value, Sweep) else [value]


def _plain(override: Override, value: Any) -> str:
    prefix = {"ADD": "+", "FORCE_ADD": "++", "DEL": "~"}.get(override.type.name, "")
    group = f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group
    if override.type.name == "DEL":
        return f"{prefix}{group}"
    return f"{prefix}{group}={'null' if value is None else value}"


def _check_choice(override: Override, config_name: str, config_dir: str | None) -> None:
    if override.type.name == "DEL":
        return
    group = override.key_or_group
    own = choices([Path(config_dir)], group) if config_dir else {}
    known = sorted({*_group_options(group), *own})
    default = chosen_by(config_folder() / f"{config_name}.yaml").get(group)
    for value in _values(override):
        if value is None and (default is None or override.package):
            continue
        if isinstance(value, list) or str(value) in known:
            continue
        shown = "null" if value is None else str(value)
        likely = "none" if value is None else shown
        raise UsageError(
            f"{group}={shown}: there is no such choice{_suggestion(likely, known)} "
            f"Choices for '{group}': {', '.join(known)}."
        )


def _check_addition(override: Override, content: dict[str, Any], typed: Sequence[str]) -> None:
    """Whatever else is added reaches a constructor, which refuses what it does not know."""
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    node = content.get(parent) if parent else content
    if parent not in READ_BY_NAME or not isinstance(node, dict) or name in node:
        return
    is_referred_to = any(f"${{{key}}}" in word for word in typed)
    if is_referred_to or _group_options(key, ObjectType.GROUP):
        return
    names = sorted(str(other) for other in node if not str(other).startswith("_"))
    where = f"'{parent}' has the keys" if parent else "Keys"
    raise UsageError(
        f"{override.input_line}: nothing reads a key '{key}'{_suggestion(name, names)} "
        f"{where}: {', '.join(names)}."
    )


def _check_key(override: Override, content: dict[str, Any], choices: Sequence[str]) -> None:
    node: Any = content
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if node is None:
            given = f" with {', '.join(choices)}" if choices else ""
            raise UsageError(f"{override.input_line}: there is no '{parent}'{given}, so it has no keys.")
        if not isinstance(node, dict):
            raise _no_parts(override, parent, node, ".".join(parts[depth:]))
        if part in node:
            node = node[part]
            continue
        groups = [] if parent else _group_options("", ObjectType.GROUP)
        names = sorted({str(name) for name in (*node, *groups) if not str(name).startswith("_")} - {"hydra"})
        where = f"'{parent}' has the keys" if parent else "Groups and keys"
        is_closed = parent in READ_BY_NAME
        plus = "" if is_closed else f" (A new key is added with a plus: +{override.input_line})"
        raise UsageError(
            f"{override.input_line}: there is no key '{override.key_or_group}'{_suggestion(part, names)} "
            f"{where}: {', '.join(names)}.{plus}"
        )


def _no_parts(override: Override, parent: str, value: Any, rest: str) -> UsageError:
    elsewhere = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
    if elsewhere:
        return UsageError(
            f"{override.input_line}: '{parent}' is what '{elsewhere[1]}' is, whose keys are set there: "
            f"{elsewhere[1]}.{rest}=<value>"
        )
    return UsageError(f"{override.input_line}: '{parent}' is {value!r}, so it has no keys.")


def _check_type(override: Override, content: dict[str, Any], whole: bool) -> None:
    if override.key_or_group in SEVERAL_TYPES:
        return
    default: Any = content
    for part in override.key_or_group.split("."):
        default = default.get(part) if isinstance(default, dict) else None
    for value in _values(override):
        check_type(override.key_or_group, value, default, override.input_line or "", whole)


def _suggestion(name: str, names: Sequence[str]) -> str:
    """The end of a sentence."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else "."


def load_config(
    overrides: Sequence[str] = (), config_name: str = "train", run_folder: str = "runs/notebook"
) -> DictConfig:
    """The config that a command line would give, for notebooks and scripts.

    Args:
        overrides: as typed, `key=value`.
        config_name: primary config.
        run_folder: where the run writes.

    Raises:
        UsageError: naming the key, the value and the choices.
    """
    overrides = several(overrides)
    check_overrides(config_name, overrides)
    check_single(overrides)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose(config_name, overrides=overrides, return_hydra_config=True)
    return resolved_in(composed, Path(run_folder))


def several(overrides: Sequence[str]) -> list[str]:
    """Overrides as a list, for a single one is easily given as it is.

    Raises:
        UsageError: it is a text.
    """
    if isinstance(overrides, str):
        raise UsageError(f"overrides={overrides!r}: wanted a list of texts, [{overrides!r}].")
    return list(overrides)


def config_of_run(config_name: str, overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    """Resolved, as of a run that starts now.

    Raises:
        UsageError: it cannot be composed, or a key has no value.
    """
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            composed = compose(
                config_name, overrides=[*searched(config_dir), *overrides], return_hydra_config=True
            )
        except HydraException as error:
            raise UsageError(in_a_line(error)) from error
    with _as_hydras(composed):
        try:
            folder = str(composed.hydra.run.dir)
        except OmegaConfBaseException as error:
            raise UsageError(f"hydra.run.dir: {in_a_line(error)}") from error
    config = resolved_in(composed, Path(folder))
    check_complete(config)
    return config


def check_complete(config: DictConfig) -> None:
    """Refuse a config of which a key that must be given was not.

    Raises:
        UsageError: naming it.
    """
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    # The shortest is the one that others refer to.
    if missing := sorted((key for key, value in _leaves(content) if value == "???"), key=len):
        raise UsageError(f"{missing[0]} has no value. Give it one: {missing[0]}=<value>")


@contextmanager
def _as_hydras(config: DictConfig) -> Iterator[None]:
    """Within it, `${hydra:…}` refers to this config."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)
    try:
        yield
    finally:
        holder.cfg = before


def resolved_in(composed: DictConfig, folder: Path) -> DictConfig:
    """What `without_hydra` gives of a run in this folder.

    Raises:
        UsageError: a key that another one needs has no value.
    """
    with read_write(composed.hydra), open_dict(composed):
        composed.hydra.runtime.output_dir = str(Path(folder).resolve())
    return without_hydra(composed)


def without_hydra(config: DictConfig) -> DictConfig:
    """The same config with all interpolations resolved, so that nothing global is needed any more.

    Raises:
        UsageError: a key that another one needs has no value.
    """
    resolved = copy.deepcopy(config)
    with open_dict(resolved):
        del resolved.hydra
    try:
        with _as_hydras(config), open_dict(resolved):
            for key in resolved:
                _resolve(resolved, str(key))
    except OmegaConfBaseException as error:
        raise UsageError(in_a_line(error)) from error
    return resolved


def _resolve(config: DictConfig, key: str) -> None:
    """One key; a part that a command has no use for may refer to what the command does not have."""
    if OmegaConf.is_missing(config, key):
        return
    with suppress(InterpolationKeyError):
        value = config[key]
        if isinstance(value, DictConfig | ListConfig):
            # What was typed is Hydra's own list, and may itself refer to a key: protocol.seed=${seed}.
            with read_write(value):
                OmegaConf.resolve(value)
        config[key] = value
