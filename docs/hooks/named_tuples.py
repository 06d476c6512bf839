"""Give a NamedTuple the signature that its fields make, as griffe does for a dataclass."""

from __future__ import annotations

from typing import Any

import griffe


class NamedTuples(griffe.Extension):
    """Looked for when a package is loaded; only classes whose base is written `NamedTuple`."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Visit every class."""
        _visit(pkg)


def _visit(scope: griffe.Module | griffe.Class) -> None:
    for member in list(scope.members.values()):
        if isinstance(member, griffe.Class) and [str(base) for base in member.bases] == ["NamedTuple"]:
            _add_constructor(member)
        if isinstance(member, griffe.Module | griffe.Class):
            _visit(member)


def _add_constructor(named: griffe.Class) -> None:
    kind = griffe.ParameterKind.positional_or_keyword
    fields = [
        griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value)
        for field in named.members.values()
        if isinstance(field, griffe.Attribute) and field.annotation is not None
    ]
    parameters = griffe.Parameters(griffe.Parameter("self", kind=kind), *fields)
    named.set_member(
        "__init__", griffe.Function("__init__", parent=named, parameters=parameters, returns="None")
    )
