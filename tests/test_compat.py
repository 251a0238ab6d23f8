"""Tests of custom.compat: nothing else of this package reaches into what is not ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "custom"


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def reached_into(source: str) -> list[str]:
    """Private names of others that ``source`` imports or reads, and what it replaces in others."""
    tree = ast.parse(source)
    foreign = set(_foreign_names(tree))
    return [ast.unparse(node) for node in ast.walk(tree) for _ in _faults(node, foreign)]


def _foreign_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not module.startswith("custom")):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)


def _faults(node: ast.AST, foreign: set[str]) -> Iterator[bool]:
    if isinstance(node, ast.ImportFrom) and node.module != "__future__" and not node.module.startswith("custom"):
        names = [*node.module.split("."), *(alias.name for alias in node.names)]
        yield from (True for name in names if is_private(name))
    if isinstance(node, ast.Attribute):
        root: ast.AST = node
        while isinstance(root, ast.Attribute):
            root = root.value
        theirs = isinstance(root, ast.Name) and root.id in foreign
        replaces = isinstance(node.ctx, ast.Store) and (theirs or node.attr == "__class__")
        if replaces or (theirs and is_private(node.attr)):
            yield True


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.cpu._is_amx_tile_supported()",
        "from torch._subclasses.fake_tensor import FakeTensorMode",
        "from monai.bundle.utils import _default",
        "from torch import nn\nnn.Module.to = lambda module: module",
        "import sys\nsys.excepthook = print",
        "def change(block):\n    block.__class__ = int",
    ],
)
def test_what_is_found(source: str) -> None:
    assert len(reached_into(source)) == 1


def test_what_is_not() -> None:
    assert not reached_into("import sys\nfrom custom.data import _own\nsys.stdout.write(__name__)\nself._mine = 1")


@pytest.mark.parametrize(
    "file", [f for f in sorted(PACKAGE.rglob("*.py")) if f.name != "compat.py"], ids=lambda f: f.stem
)
def test_the_interfaces_of_others_are_kept_to(file: Path) -> None:
    assert reached_into(file.read_text(encoding="utf-8")) == []
