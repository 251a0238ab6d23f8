"""The house: few rooms, few arrows between them, all pointing downward, and tests that mirror them.

A room is what lies directly under ``custom/``: a folder or a module. An arrow is a pair of rooms of which one imports
the other, anywhere in its code: an import inside a function hides no circle.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_ROOMS, MOST_ARROWS = 14, 55
# each may import those below it; the package itself and its command line are the two doors
ORDER = (
    "__main__", "__init__", "api", "commands", "preparation", "reports", "evaluation", "rivals", "training",
    "inference", "data",
    "networks", "utils", "compat",
)  # fmt: skip
# folders of tests that are no rooms: of the benchmarks, of programs beside the suite, of what tests share
OTHER_FOLDERS = {"benchmarks", "campaign", "clients", "fixtures", "label"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name of every module of the package → its file."""
    found = {}
    for path in (root / "custom").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Container[str]) -> set[str]:
    """Modules of the package that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this scan does not follow"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in whole}
    return {name for name in found if name in known}


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module → modules of the package that it imports; a package stands for its ``__init__``."""
    return {name: imports(path, files) - {name} for name, path in files.items()}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.fixture(scope="module")
def arrows() -> set[tuple[str, str]]:
    return {(room(a), room(b)) for a, found in graph(modules()).items() for b in found if room(a) != room(b)}


def test_few_rooms() -> None:
    rooms = {room(name) for name in modules()}
    assert rooms <= set(ORDER), "a new room: give it its place in ORDER"
    assert len(rooms) <= MOST_ROOMS


def test_few_arrows(arrows: set[tuple[str, str]]) -> None:
    assert 10 < len(arrows) <= MOST_ARROWS


def test_arrows_point_downward(arrows: set[tuple[str, str]]) -> None:
    assert [(a, b) for a, b in sorted(arrows) if ORDER.index(a) > ORDER.index(b)] == []


def test_the_drawing_shows_the_arrows(arrows: set[tuple[str, str]]) -> None:
    """Those to ``utils``, which nearly all have, are left out of the comparison."""
    drawn = set()
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r" +(\w+)\[.*\] --> ([\w &]+)", line):
            drawn |= {(found[1], below) for below in found[2].split(" & ")}
    assert {a for a in drawn if a[1] != "utils"} == {a for a in arrows if a[1] != "utils"}


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter(graph(modules())).prepare()  # names the modules of a circle in its error


def test_tests_mirror_the_rooms() -> None:
    rooms = {room(name) for name in modules()}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folders = path.relative_to(ROOT / "tests").parts[:-1]
        if folders and folders[0] not in OTHER_FOLDERS:
            assert folders[0] in rooms, path
            assert ROOT.joinpath("custom", *folders).is_dir(), path


def test_the_scan_sees_late_imports_circles_and_arrows(tmp_path: Path) -> None:
    texts = {
        "__init__": "",
        "data/__init__": "",
        "data/one": "def late():\n    from custom.utils.two import f",
        "utils/__init__": "",
        "utils/two": "import custom.data.one",
    }
    for name, text in texts.items():
        path = tmp_path / "custom" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = graph(modules(tmp_path))
    assert found["custom.data.one"] == {"custom.utils.two"}
    assert found["custom.utils.two"] == {"custom.data.one"}
    with pytest.raises(ValueError, match="cycle"):
        TopologicalSorter(found).prepare()
    assert {room(name) for name in found} == {"__init__", "data", "utils"}
