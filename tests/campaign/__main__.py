"""``make campaign``: bad inputs, killed trainings, known cases, invariances, fuzzed files, with one table at the end.

``python tests/campaign [--quick] [--only bad_inputs resume cases invariances fuzz] [--minutes 20] [--seed 0]
[--kinds WORD] [--every 1]``. The exit status is 1 if any mark is missed: data lost, a traceback, a hang, an unclear
error, a wrong voxel. To be run again whenever preprocessing, inputs or weights change.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bad_inputs
import resume
from forks import load_libraries

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS, QUICK_KILLS = 20, 2
FEWEST_KINDS = 90
INVARIANCES = "tests/inference/test_invariances.py"


class Mark(NamedTuple):
    """A line of the table."""

    part: str
    counted: str
    found: object
    wanted: str
    met: bool


def main() -> int:
    """Run the chosen parts; 0 if all their marks are met."""
    parser = argparse.ArgumentParser(prog="python tests/campaign", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="few kills, one minute of fuzzing")
    parser.add_argument("--minutes", type=float, help="of fuzzing; by default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills and of the fuzzing")
    parser.add_argument("--kinds", default="", help="only bad inputs whose area or name holds this")
    parser.add_argument("--every", type=int, default=1, help="of the bad inputs only one in so many")
    chosen = parser.parse_args()
    chosen.minutes = chosen.minutes if chosen.minutes is not None else 1.0 if chosen.quick else 20.0
    start, marks = time.perf_counter(), []
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    load_libraries()
    for part in chosen.only:
        with tempfile.TemporaryDirectory(prefix=f"campaign-{part}-") as folder:
            try:
                marks += PARTS[part](Path(folder), chosen)
            except Exception as error:
                print(f"FAILED {part}: {type(error).__name__}: {error}", flush=True)
                marks.append(Mark(part, "runs to its end", type(error).__name__, "yes", False))
    _print_table(marks, time.perf_counter() - start)
    return 0 if all(mark.met for mark in marks) else 1


def _bad_inputs(folder: Path, chosen: argparse.Namespace) -> list[Mark]:
    found = []
    for one in bad_inputs.run(folder, chosen.kinds, chosen.every):
        found.append(one)
        state = "FAILED" if one.faults else "ok    "
        print(f"{state} {one.kind.area}: {one.kind.name} ({one.seconds:.1f} s): {one.error[:400]}", flush=True)
        for fault, detail in one.faults.items():
            print(f"         {fault}: {detail[:300]}", flush=True)
    counts = Counter(fault for one in found for fault in one.faults)
    clear = sum(not one.faults for one in found)
    fewest = 1 if chosen.kinds or chosen.every > 1 else FEWEST_KINDS
    zero = [("traceback", "tracebacks"), ("hang", "hangs"), ("crash", "crashes"), ("accepted", "accepted as good")]
    return [
        Mark("bad inputs", "kinds", len(found), f"at least {fewest}", len(found) >= fewest),
        Mark("bad inputs", "clear errors", clear, "all", clear == len(found)),
        *(Mark("bad inputs", words, counts[fault], "0", not counts[fault]) for fault, words in zero),
        Mark("bad inputs", "with files left behind", counts["left behind"], "0", not counts["left behind"]),
        Mark(
            "bad inputs",
            "slow or large",
            counts["slow"] + counts["memory"],
            "0",
            not (counts["slow"] + counts["memory"]),
        ),
    ]


def _resume(folder: Path, chosen: argparse.Namespace) -> list[Mark]:
    kills = QUICK_KILLS if chosen.quick else KILLS
    data = bad_inputs.Base(folder / "base").data
    trials = []
    for trial in resume.run(data, folder / "runs", kills, chosen.seed):
        trials.append(trial)
        print(
            f"{'FAILED' if trial.problem else 'ok    '} {trial.stage}: {trial.kills} kills {trial.problem}", flush=True
        )
    done = Counter[str]()
    for trial in trials:
        done[trial.stage] += trial.kills
    signalled = []
    for trial in itertools.chain(resume.interrupted(data, folder / "runs"), resume.full_disk(data, folder / "runs")):
        signalled.append(trial)
        print(f"{'FAILED' if trial.problem else 'ok    '} {trial.stage} {trial.problem}", flush=True)
    lost = sum(bool(trial.problem) for trial in trials)
    stopped = sum(not trial.problem for trial in signalled)
    return [
        *(Mark("resume", f"{s}: kills", done[s], f"at least {kills}", done[s] >= kills) for s in resume.STAGES),
        Mark("resume", "trainings killed", len(trials), "", True),
        Mark("resume", "survived, equal to the bit", len(trials) - lost, "all", not lost),
        Mark("resume", "data lost", lost, "0", not lost),
        Mark("resume", "SIGTERM, Ctrl-C, disk full: said, resumed", stopped, "9", stopped == 9),
    ]


def _fuzz(folder: Path, chosen: argparse.Namespace) -> list[Mark]:
    import fuzz_readers

    result = fuzz_readers.run(chosen.minutes, chosen.seed)
    print(result, flush=True)
    return [
        Mark("fuzz", "changed files read", result["files"], "", True),
        Mark("fuzz", "wrong, crashed, hung", result["bad"], "0", not result["bad"]),
    ]


def _cases(folder: Path, chosen: argparse.Namespace) -> list[Mark]:
    import cases

    found = list(cases.run(folder))
    for name, problem in found:
        print(f"{'FAILED' if problem else 'ok    '} {name}: {problem}", flush=True)
    right = sum(not problem for _, problem in found)
    return [Mark("cases", "that went wrong once, now right", right, f"all {len(found)}", right == len(found) > 0)]


def _invariances(folder: Path, chosen: argparse.Namespace) -> list[Mark]:
    done = subprocess.run([sys.executable, "-m", "pytest", INVARIANCES, "-p", "no:cacheprovider"], cwd=REPOSITORY)
    return [Mark("invariances", f"pytest {INVARIANCES}: exit status", done.returncode, "0", done.returncode == 0)]


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Mark]]] = {
    "bad_inputs": _bad_inputs, "resume": _resume, "cases": _cases, "invariances": _invariances, "fuzz": _fuzz,
}  # fmt: skip


def _print_table(marks: list[Mark], seconds: float) -> None:
    rows = [("part", "counted", "found", "wanted", "")]
    rows += [(m.part, m.counted, str(m.found), m.wanted, "" if m.met else "MISSED") for m in marks]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    print()
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{sum(not m.met for m in marks)} marks missed, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
