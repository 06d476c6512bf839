"""Passwords, tokens and keys have no place in what a run writes down."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Letters of a value of the environment that is looked for in texts; less would be found by chance."""
_NAME = r"(?:token|password|passwd|secret|credentials?|(?:api|access|private)[_-]?key)"
_IS_NAME = re.compile(rf"(?:^|[._/@-]){_NAME}$", re.IGNORECASE)
_OVERRIDE = re.compile(rf"([+~]*(?:[\w./@-]*[._/@-])?{_NAME})=.+", re.IGNORECASE | re.DOTALL)
_WITHIN = re.compile(rf"(\b(?:[\w.-]*[._-])?{_NAME}=)[^\s,&'\"]+", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(\w://)[^/\s@]+@")


def redacted(content: Any, environment: Mapping[str, str] | None = None) -> Any:
    """The same plain data without secrets.

    A text is hidden where its key says that it is one (`api_key`, `…_token`, `password` …), in overrides of
    such a key (`key=value`), as user and password of an address, and where it holds the value of an
    environment variable with such a name.

    Args:
        content: mappings, lists and scalars.
        environment: variables; of this process by default.
    """
    return _redacted(content, _values(os.environ if environment is None else environment))


def _values(environment: Mapping[str, str]) -> list[str]:
    """Longest first, as one may be a part of another."""
    found = {value for name, value in environment.items() if _IS_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def _redacted(content: Any, values: Iterable[str]) -> Any:
    if isinstance(content, Mapping):
        return {
            key: HIDDEN if _is_secret(str(key), value) else _redacted(value, values)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [_redacted(item, values) for item in content]
    return _without(content, values) if isinstance(content, str) else content


def _is_secret(key: str, value: Any) -> bool:
    # A number or a truth value is a setting, such as `class_token: true`; a reference holds nothing itself.
    return (
        isinstance(value, str) and bool(value) and not value.startswith("${") and bool(_IS_NAME.search(key))
    )


def _without(text: str, values: Iterable[str]) -> str:
    if found := _OVERRIDE.fullmatch(text):
        return f"{found[1]}={HIDDEN}"
    for value in values:
        text = text.replace(value, HIDDEN)
    return _IN_ADDRESS.sub(rf"\1{HIDDEN}@", _WITHIN.sub(rf"\1{HIDDEN}", text))
