"""Put every group of `conf/` and its choices into the page that asks for them: their one home is the YAML."""

from __future__ import annotations

import html
from typing import Any

from unseen.config.command_line import config_folder
from unseen.config.groups import Group, read_groups

MARK = "<!-- every group and its choices -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark, if the page has it."""
    return markdown.replace(MARK, choices()) if MARK in markdown else markdown


def choices() -> str:
    """A heading and a table for each group of `unseen train`."""
    return "\n\n".join(map(_section, read_groups([config_folder()], "train")))


def _section(group: Group) -> str:
    rows = [f"| {_name(group, choice)} | {_text(text)} |" for choice, text in group.choices.items()]
    return "\n".join(
        [f"## {group.name}", "", f"{_text(group.decides)}", "", "| choice | |", "|---|---|", *rows]
    )


def _name(group: Group, choice: str) -> str:
    code = f"`{choice}`"
    return f"**{code}**" if choice == group.default else code


def _text(text: str) -> str:
    # Comments of YAML files are no Markdown: a name in angle brackets is not a tag.
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")
