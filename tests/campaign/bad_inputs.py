"""Every kind of bad input, each as a command of its own: what it must say, and what it must not leave behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import kinds_configs  # noqa: F401
import kinds_data  # noqa: F401
import kinds_dicom  # noqa: F401
import kinds_files  # noqa: F401
import kinds_options  # noqa: F401
from forks import Outcome, command, fork
from kinds import KINDS, Kind
from rooms import Base, Room

__all__ = ["Found", "run"]

HANG_SECONDS = 120.0  # by the clock, on a machine that may be busy
MOST_MEGABYTES = 3000.0  # with the libraries', which are about 700
ERROR = re.compile(r"^error: .*", re.IGNORECASE | re.MULTILINE)


class Found(NamedTuple):
    """What a kind has shown.

    Attributes:
        kind: that was tried.
        error: the one line that was said, or the last line.
        faults: what was wrong with it: ``traceback``, ``hang``, ``status`` and so on, with details.
        seconds: that the command took.
    """

    kind: Kind
    error: str
    faults: dict[str, str]
    seconds: float


def run(folder: Path, only: str = "", every: int = 1) -> Iterator[Found]:
    """Try one in ``every`` of the kinds whose area or name holds ``only``."""
    base = Base(folder / "base")
    for number, one in enumerate([one for one in KINDS if only in f"{one.area}: {one.name}"][::every]):
        yield _try(one, base, folder / f"{number:03d}")


def _try(one: Kind, base: Base, folder: Path) -> Found:
    room = Room(base, folder)
    try:
        words = one.make(room)
    except Exception as error:
        return Found(one, "", {"not made": f"{type(error).__name__}: {error}"}, 0.0)
    before = set(_files(folder))
    outcome = fork(command(words), folder, seconds=HANG_SECONDS)
    left = [name for name in _files(folder) if name not in before and not name.endswith(one.leaves or ("\0",))]
    error, faults = _judge(one, outcome, left)
    shutil.rmtree(folder, ignore_errors=True)
    return Found(one, error, faults, outcome.seconds)


def _judge(one: Kind, outcome: Outcome, left: Sequence[str]) -> tuple[str, dict[str, str]]:
    said = outcome.out + outcome.err
    errors = ERROR.findall(outcome.err)
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    error = errors[-1] if errors else lines[-1] if lines else ""
    faults = {}
    if outcome.hung:
        faults["hang"] = f"still running after {HANG_SECONDS:.0f} s"
    elif outcome.status == 0:
        faults["accepted"] = "exit status 0"
    elif outcome.status < 0 or outcome.status > 128:
        faults["crash"] = f"exit status {outcome.status}"
    if "Traceback (most recent call last)" in said:
        faults["traceback"] = lines[-1] if lines else ""
    if len(errors) != 1:
        faults["lines"] = f"{len(errors)} lines that begin with 'error:'"
    unsaid = [words for words in one.says if not re.search(words, error)]
    if unsaid:
        faults["unclear"] = f"not said: {', '.join(unsaid)}"
    if left:
        faults["left behind"] = ", ".join(left[:5])
    if outcome.seconds > one.seconds and not outcome.hung:
        faults["slow"] = f"{outcome.seconds:.1f} s"
    if outcome.megabytes > MOST_MEGABYTES:
        faults["memory"] = f"{outcome.megabytes:.0f} MB"
    return error, faults


def _files(folder: Path) -> list[str]:
    """Files below a folder, but for what Python itself keeps."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and "__pycache__" not in p.parts]
