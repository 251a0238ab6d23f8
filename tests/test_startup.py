"""What starting costs: modules that take long to load are loaded by what uses them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "monai", "numpy", "matplotlib", "scipy", "skimage", "nilearn", "itk", "nibabel", "pydicom", "onnx")


def loaded(code: str, *arguments: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after ``code``."""
    told = f"import json, sys\nsys.argv[1:] = {list(arguments)!r}\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
    told += "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing() -> None:
    assert loaded("import custom").isdisjoint(SLOW)


@pytest.mark.parametrize("arguments", [("--help",), ("prepare", "--help"), ("phantom", "--help")])
def test_help_of_the_command_line_loads_no_library(arguments: tuple[str, ...]) -> None:
    code = "import runpy; runpy.run_module('custom', run_name='__main__')"
    assert loaded(code, *arguments).isdisjoint(SLOW)


_TRANSLATION = """
import json, pydoc, sys
before = set(sys.modules)
assert "monai.bundle" in before
for name in json.loads(sys.argv[1]):
    assert pydoc.locate(name) is not None, name
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


@pytest.mark.slow
def test_a_translation_loads_this_package_beyond_monai_bundle(elsewhere: Callable[..., str], tmp_path: Path) -> None:
    """All that inference.json names."""
    names = sorted(set(re.findall(r"custom(?:\.\w+)+", (ROOT / "bundle/configs/inference.json").read_text())))
    assert "custom.networks.LatentTranslator" in names
    (tmp_path / "client.py").write_text(_TRANSLATION)
    said = elsewhere(tmp_path / "client.py", json.dumps(names), pythonpath=ROOT)
    assert json.loads(said.splitlines()[-1]) == ["custom"]
