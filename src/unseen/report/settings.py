"""In which settings runs differ that are compared with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unseen.report.runs import Run, as_text

TARGET = "._target_"
SHOWN = 4
"""Values of a key that are written out."""
ABSENT = "absent"
"""In place of a value: the run's version had no such key, or another part does not take it."""


@dataclass(frozen=True)
class Setting:
    """A key of the config in which runs that are compared with each other differ.

    Args:
        method: whose runs differ from the reference's.
        key: dotted, or a part that another choice replaced, such as `fusion`.
        reference: the reference's value as text; several, with commas, where pairs differ differently.
        value: the method's.
        pairs: number of pairs that differ in it.
        of: number of pairs.
        is_part: a whole part that differs in every pair, such as `fusion`: it is the method. Any other key is
            in the difference beside the method.
        is_within: runs of the same method in the same cell differ, from one seed to another; `reference` is
            then the value of the first seed.
    """

    method: str
    key: str
    reference: str
    value: str
    pairs: int
    of: int
    is_part: bool
    is_within: bool = False


class Change(NamedTuple):
    """From one run to another.

    Args:
        before: value of the one, as text.
        after: value of the other.
        is_part: whether it is a whole part.
    """

    before: str
    after: str
    is_part: bool


def changes(before: Run, after: Run) -> dict[str, Change]:
    """Dotted key → change of all that changes what is trained or how it is measured, but for the seed.

    A part (what has a `_target_`) that another replaced is one key, without the keys below it.
    """
    old, new = before.settings, after.settings
    absent = object()
    differing = [key for key in {**old, **new} if old.get(key, absent) != new.get(key, absent)]
    parts = {key.removesuffix(TARGET) for key in differing if key.endswith(TARGET)}
    found: dict[str, Change] = {}
    for key in sorted(differing):
        part = next((above for above in _above(key) if above in parts), None)
        name = part or key
        found[name] = Change(_shown(before, old, name), _shown(after, new, name), part is not None)
    return found


def setting_differences(
    method: str, pairs: Iterable[tuple[Run, Run]], *, compare: str, is_within: bool = False
) -> list[Setting]:
    """All keys in which pairs of runs differ, by key.

    Args:
        method: its name.
        pairs: the reference's run and the method's.
        compare: the key that tells methods apart; neither it nor what lies below it is listed.
        is_within: pairs are of one method.
    """
    found: dict[str, list[Change]] = defaultdict(list)
    of = 0
    for before, after in pairs:
        of += 1
        for key, change in _with_version(before, after).items():
            if not f"{key}.".startswith(f"{compare}."):
                found[key].append(change)
    return [
        Setting(
            method=method,
            key=key,
            reference=_joined(change.before for change in listed),
            value=_joined(change.after for change in listed),
            pairs=len(listed),
            of=of,
            is_part=len(listed) == of and all(change.is_part for change in listed),
            is_within=is_within,
        )
        for key, listed in sorted(found.items())
    ]


def _with_version(before: Run, after: Run) -> dict[str, Change]:
    old, new = (run.record.environment.versions.get("unseen-dml", "unknown") for run in (before, after))
    version = {} if old == new else {"version of unseen": Change(old, new, False)}
    return changes(before, after) | version


def _above(key: str) -> list[str]:
    """The key's prefixes, the shortest first, and itself."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _shown(run: Run, settings: Mapping[str, Any], key: str) -> str:
    if key in run.record.choices:
        return as_text(run.record.choices[key])
    if (target := settings.get(key + TARGET)) is not None:
        return str(target).rpartition(".")[2]
    if not any(f"{name}.".startswith(f"{key}.") for name in settings):
        return ABSENT
    return as_text(settings.get(key))


def _joined(values: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(values))
    more = [] if len(distinct) <= SHOWN else [f"{len(distinct) - SHOWN} more"]
    return ", ".join([*distinct[:SHOWN], *more])
