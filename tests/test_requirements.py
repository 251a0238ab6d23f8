"""Versions: what pyproject.toml allows, what constraints.txt installs, what the bundle's metadata names."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
TOOLS = {Requirement(text).name for text in PROJECT["optional-dependencies"]["dev"]}


def newest() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def oldest() -> dict[str, str]:
    """What ``make test-lowest`` installs."""
    return {name: next(s.version for s in spec if s.operator == ">=") for name, spec in NEEDED.items()}


def test_every_requirement_has_its_newest_version() -> None:
    assert newest().keys() == NEEDED.keys() | TOOLS
    for name, spec in NEEDED.items():
        assert newest()[name] in spec, name
        assert Version(oldest()[name]) <= Version(newest()[name]), name


def test_the_makefile_finds_the_oldest_versions() -> None:
    """It reads pyproject.toml by a pattern, one requirement a line."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pattern = re.search(r"s/(\^ \*.+?)/\\1==\\2/p", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert pattern is not None
    assert dict(re.findall(pattern[1], text, re.MULTILINE)) == oldest()


def test_another_build_of_torch_is_left_alone() -> None:
    assert "2.8.0+cu129" in NEEDED["torch"]
    assert "2.14.0+cu130" in NEEDED["torch"]


def metadata() -> dict[str, str]:
    content = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    named = {name: content[f"{key}_version"] for name, key in {"monai": "monai", "torch": "pytorch"}.items()}
    return {**named, "numpy": content["numpy_version"], **content["required_packages_version"]}


def test_metadata_names_every_requirement_once() -> None:
    assert metadata().keys() == NEEDED.keys()


@pytest.mark.parametrize("name", NEEDED)
def test_metadata_names_a_version_that_the_tests_run_with(name: str) -> None:
    """The newest, or the oldest where a client cannot have the newest."""
    assert metadata()[name] in (newest()[name], oldest()[name])
