"""The quick campaign: some of the bad inputs; trainings that are killed, stopped and left without room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


# a dozen commands, two dozen short trainings, each in a fork of one process
@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [["bad_inputs", "--every", "16"], ["resume"]],
    ids=lambda chosen: chosen[0],
)
def test_marks_of_the_quick_campaign_are_met(chosen: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "tests/campaign", "--quick", "--only", *chosen],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    failed = "\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "    ")))
    assert done.returncode == 0, failed[-6000:] + done.stdout[-1500:] + done.stderr[-1500:]
