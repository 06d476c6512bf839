"""What the documentation shows works as it stands: Python runs, command lines compose, keys exist.

In README and docs/ every ```python block runs, page by page, one namespace a page. HTML comments that readers
do not see may precede a block:

    <!-- not executed: reason -->             the block is skipped
    <!-- executed with: a → b; c → d -->      text is replaced first: smaller networks, fewer epochs
    <!-- setup                                this Python runs before it
    images = …
    -->

A Python or YAML block that begins with a comment `# folder/file.yaml` is such a file in the folder where all
runs. Lines of other blocks that begin with `unseen` (or `make train ARGS=…`) are checked and composed, and so
is each `key=value` in the text.
"""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra.utils import get_object

from unseen.config import tune
from unseen.config.command_line import check_overrides
from unseen.config.measure import check_changes
from unseen.config.own import divided, own_config
from unseen.config.sweep import planned
from unseen.config.values import UsageError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<comments>(?:^ *<!--(?:(?!-->).)*-->\s*)*)"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*$",
    re.DOTALL | re.MULTILINE,
)
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
COMMANDS = "train|measure|check|prepare|report|sweep|tune|export|embed|index|inspect|search|demo"
COMMAND = re.compile(rf"^(?:\$ )?(?:\.venv/bin/)?unseen ({COMMANDS}) ?(.*)$")
INLINE = re.compile(r"(?<!`)`([a-z_]+(?:\.[a-z_]+)*=[^`\s…<>{}(]+)`(?!`)")
COMPANIONS = (
    [],
    ["ablation=full"],
    ["data=folder", "data.root=/images"],
    ["data=csv", "data.path=images.csv"],
    ["data=plantvillage"],
    ["data=cub"],
    ["protocol=folds"],
    ["loss=combined"],
    ["memory=cross_batch"],
    ["regularizer=distillation"],
    ["regularizer=self_distillation"],
    ["regularizer=mixup"],
    ["regularizer=introspection"],
    ["averaging=ema"],
    ["averaging=wise_ft"],
    ["trainable=last"],
    ["trainable=lora"],
    ["speed=measured"],
    ["logger=[wandb,mlflow]"],
)
"""Choices that have keys which others have not."""
PLACEHOLDERS = {"group=choice", "key=value"}


class Block(NamedTuple):
    """A fenced block, and what its comments ask for."""

    line: int
    language: str
    text: str
    setup: str
    replacements: list[tuple[str, str]]
    is_skipped: bool

    @property
    def file(self) -> str | None:
        """The file that it shows, by the comment of its first line."""
        named = re.match(r"# ([\w/]+\.(?:py|yaml))$", self.text.split("\n", 1)[0])
        return named[1] if named else None


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [_block(content, found) for found in BLOCK.finditer(content)]


def _block(content: str, found: re.Match[str]) -> Block:
    comments = [comment.strip() for comment in COMMENT.findall(found["comments"])]
    replaced = [comment.split(":", 1)[1] for comment in comments if comment.startswith("executed with:")]
    pairs = [part.strip().split(" → ") for text in replaced for part in text.split(";")]
    indent = len(found["indent"])
    return Block(
        line=content.count("\n", 0, found.start("text")) + 1,
        language=found["language"],
        text="".join(line[indent:] or "\n" for line in found["text"].splitlines(keepends=True)),
        setup="\n".join(text.removeprefix("setup") for text in comments if text.startswith("setup")),
        replacements=[(old, new) for old, new in pairs],
        is_skipped=any(text.startswith("not executed:") for text in comments),
    )


def commands(block: Block) -> list[tuple[str, str]]:
    """Command lines of `unseen`, continued lines joined, each with the line that follows."""
    if block.language not in ("", "bash", "sh", "console"):
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r'^make train ARGS="(.*)".*$', r"unseen train \1", line) for line in lines]
    return [pair for pair in zip(lines, [*lines[1:], ""], strict=True) if COMMAND.match(pair[0])]


def check_command(line: str) -> None:
    found = COMMAND.match(line)
    assert found
    # What stands in angle brackets is the reader's: overrides of his own, or a part of a path.
    typed = re.sub(r"<(\w+)>", r"\1", re.sub(r"(?<!\S)<[^>]*>", "", found[2]))
    words = shlex.split(typed, comments=True)
    if "--help" in words:
        return
    folder = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = [word for word in words if "=" in word]
    flags = {word for word in words if "=" not in word} - {folder}
    assert flags <= {"--multirun", "--config-dir", "--cfg", "job"}, line
    if found[1] == "sweep" or "--multirun" in words:
        assert planned(overrides, folder)[1]
        return
    if found[1] == "tune":
        assert tune.planned(overrides, folder)[1]
        return
    if found[1] == "measure":
        own, changes = divided(overrides, "measure")
        own_config(own, "measure", folder)
        check_changes(changes, folder)
        return
    check_overrides(found[1], overrides, folder)


def exported(page: list[Block]) -> dict[str, str]:
    """Variables that a page sets in its shell."""
    lines = [line for block in page if block.language == "bash" for line in block.text.splitlines()]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))


def write_files(page: list[Block], folder: Path) -> None:
    for block in page:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text.split("\n", 1)[1], encoding="utf-8")  # without its name


def targets(content: Any) -> list[str]:
    """Every `_target_` in a YAML document."""
    if not isinstance(content, dict):
        return []
    own = [content["_target_"]] if "_target_" in content else []
    return own + [target for value in content.values() for target in targets(value)]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _pages_with(wanted: Any) -> list[Path]:
    return [page for page in PAGES if any(map(wanted, blocks(page)))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages_with(lambda block: block.language == "python"), ids=_name)
def test_python_runs(page, folder):
    shown = blocks(page)
    write_files(shown, folder)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in shown:
        if block.language != "python" or block.is_skipped:
            continue
        text = block.text
        for old, new in block.replacements:
            assert old in text, f"{page.name}:{block.line}: there is no {old!r} to replace"
            text = text.replace(old, new)
        exec(block.setup, namespace)
        # Lines of tracebacks are those of the page.
        exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages_with(commands), ids=_name)
def test_command_lines_compose(page, folder, monkeypatch):
    shown = blocks(page)
    write_files(shown, folder)
    for name, value in exported(shown).items():
        monkeypatch.setenv(name, value)
    for command, following in (pair for block in shown for pair in commands(block)):
        if following.startswith("error: "):
            with pytest.raises(UsageError) as refused:
                check_command(command)
            assert str(refused.value).startswith(following.removeprefix("error: ").split("…")[0])
        else:
            check_command(command)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_keys_in_the_text_exist(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    reasons = {override: refusal(override) for override in sorted(set(INLINE.findall(prose)) - PLACEHOLDERS)}
    assert {override: reason for override, reason in reasons.items() if reason} == {}


@functools.cache
def refusal(override: str) -> str | None:
    """Why no command has it; none if one does, among suitable companions."""
    reasons = []
    first, *others_of_train = [("train", companions) for companions in COMPANIONS]
    of_sweeps = [("sweep", [f"launcher={name}"]) for name in ("slurm", "ray", "joblib")]
    of_others: list[tuple[str, list[str]]] = [
        (name, []) for name in ("report", "tune", "export", "index", "inspect", "demo")
    ]
    of_others += [("export", [f"format={name}"]) for name in ("onnx", "onnx_int8")]
    of_others.append(("embed", ["runner=ray"]))
    group = override.partition(".")[0]
    others_of_train.sort(key=lambda pair: not any(one.startswith(f"{group}=") for one in pair[1]))
    near, *far = others_of_train
    for command, companions in [first, near, *of_others, *of_sweeps, *far]:
        others = [one for one in companions if one.split("=")[0] != override.split("=")[0]]
        try:
            check_overrides(command, [*others, override])
            return None
        except UsageError as error:
            reasons.append(str(error))
    return reasons[0]


@pytest.mark.parametrize("page", _pages_with(lambda block: (block.file or "").endswith(".py")), ids=_name)
def test_files_name_objects_that_exist(page, folder):
    shown = blocks(page)
    write_files(shown, folder)
    for block in shown:
        if block.language == "yaml" and block.file is not None:
            for target in targets(yaml.safe_load(block.text)):
                get_object(target)


def test_every_page_is_in_the_navigation():
    content = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES[1:] if page.relative_to(ROOT / "docs").as_posix() not in content]
    assert not missing


def test_a_block_is_read_with_its_comments(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n<!-- executed with: 20 → 1; a → b -->\n```python\nx = 20\n```\n\n"
        "<!-- not executed: slow -->\n```python\ny\n```\n\n<!-- setup\nz = 1\n-->\n```python\nz\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.line, first.text, first.replacements) == (5, "x = 20\n", [("20", "1"), ("a", "b")])
    assert second.is_skipped
    assert not first.is_skipped
    assert third.setup.strip() == "z = 1"


@pytest.mark.parametrize(
    "line", ["unseen train los=triplet", "unseen train --cgf job", "unseen check data=cup"]
)
def test_a_stale_line_is_found(line):
    with pytest.raises((UsageError, AssertionError)):
        check_command(line)
