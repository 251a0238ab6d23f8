"""Tests of tests/fixtures/skips.py, on runs of pytest with made tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.skips import ALLOWED

PLUGIN = Path(__file__).parent / "fixtures" / "skips.py"
EXPECTED = next(iter(ALLOWED))


def run(folder: Path, body: str, ci: str) -> tuple[int, str]:
    """Exit status and output of pytest with the plugin as conftest, for a passing test and ``body``."""
    shutil.copy(PLUGIN, folder / "conftest.py")
    (folder / "test_made.py").write_text(f"import pytest\n\ndef test_passes():\n    pass\n\n{body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", folder, folder]
    found = subprocess.run(
        command, cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False, timeout=120
    )
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize(
    "body",
    [
        "def test_it():\n    pytest.skip('no ferry')",
        "@pytest.mark.skip(reason='no ferry')\ndef test_it():\n    pass",
        "@pytest.mark.skipif(True, reason='no ferry')\ndef test_it():\n    pass",
        "@pytest.fixture\ndef ferry():\n    pytest.skip('no ferry')\n\ndef test_it(ferry):\n    pass",
        "pytest.skip('no ferry', allow_module_level=True)",
    ],
    ids=["call", "mark", "condition", "fixture", "file"],
)
def test_a_skip_is_said_and_fails_in_continuous_integration(tmp_path: Path, body: str) -> None:
    status, said = run(tmp_path, body, ci="true")
    assert status != 0
    assert "1 × no ferry" in said
    assert "error: with CI=true a skip must be in ALLOWED" in said


def test_elsewhere_it_is_said_alone(tmp_path: Path) -> None:
    status, said = run(tmp_path, "def test_it():\n    pytest.skip('no ferry')", ci="")
    assert status == 0
    assert "1 tests were left out" in said
    assert "1 × no ferry" in said


def test_expected_skips_pass_everywhere(tmp_path: Path) -> None:
    status, said = run(tmp_path, f"def test_it():\n    pytest.skip({EXPECTED + ': /nowhere'!r})", ci="true")
    assert status == 0
    assert f"1 × {EXPECTED}" in said


def test_without_skips_nothing_is_said(tmp_path: Path) -> None:
    status, said = run(tmp_path, "", ci="true")
    assert status == 0
    assert "left out" not in said
