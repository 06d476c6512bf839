"""What stands beside the code agrees with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_to_cite_is_the_package_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]


def test_the_public_checks_run_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    local = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"lint", "types", "imports", "docs", "test"} <= set(re.findall(r"make ([a-z-]+)", workflow))
    for script in (workflow, local):
        assert set(re.findall(r"make ([a-z-]+)", script)) <= targets
