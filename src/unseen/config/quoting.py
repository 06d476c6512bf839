"""Texts as the grammar of overrides reads them, whatever they hold: `~`, `=`, commas, brackets, `é`."""

from __future__ import annotations

import re
from pathlib import Path


def quoted(text: str | Path) -> str:
    """What to type as the value of a key to mean this text; a path of plain characters stays bare.

    The grammar takes a backslash for itself only where a quote follows, or the end.
    """
    if re.fullmatch(r"[\w.]*/[\w./+-]*", str(text), re.ASCII):
        return str(text)

    def escaped(found: re.Match[str]) -> str:
        quote = "\\'" if found[2] else ""
        return found[1] * 2 + quote

    return "'" + re.sub(r"(\\*)('|\Z)", escaped, str(text)) + "'"
