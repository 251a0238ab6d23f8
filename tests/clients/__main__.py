"""``make clients``: run every real client of the bundle on the packaged zip, and print what passed.

Each runs in an environment of its own (``.venv-clients``, several GB, built on first use) from a folder without the
repository. The exit status is 1 if any check failed; there is no way to skip one but ``--only``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bundle_commands
import deploy
import federated
import label
import torchrun
import zoo
from harness import Check, Context

CLIENTS = {
    "zoo": zoo.run,
    "bundle_commands": bundle_commands.run,
    "torchrun": torchrun.run,
    "federated": federated.run,
    "label": label.run,
    "deploy": deploy.run,
}


def main() -> int:
    """Run the chosen clients; 0 if all their checks passed."""
    parser = argparse.ArgumentParser(prog="python tests/clients", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), metavar="NAME")
    chosen = parser.parse_args().only
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        context = Context(Path(folder))
        checks = [_show(check) for name in chosen for check in _checks(name, context)]
    _print_table(checks, time.perf_counter() - start)
    return 0 if all(check.passed for check in checks) else 1


def _checks(name: str, context: Context) -> Iterator[Check]:
    """The checks of a client; one that ends early or checks nothing has failed."""
    start, count = time.perf_counter(), 0
    try:
        for count, check in enumerate(CLIENTS[name](context), start=1):  # noqa: B007
            yield check
        message = "" if count else "no check was made"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    if message:
        yield Check(name, "runs to its end", False, time.perf_counter() - start, message)


def _show(check: Check) -> Check:
    print(
        f"{'ok    ' if check.passed else 'FAILED'} {check.client}: {check.check} ({check.seconds:.1f} s)"
        f"{': ' * bool(check.message)}{check.message}",
        flush=True,
    )
    return check


def _print_table(checks: list[Check], seconds: float) -> None:
    rows = [(c.client, c.check, "pass" if c.passed else "FAIL", f"{c.seconds:.1f}") for c in checks]
    rows = [("client", "check", "result", "seconds"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for client, check, result, time_taken in rows:
        print(f"{client:<{widths[0]}}  {check:<{widths[1]}}  {result:<{widths[2]}}  {time_taken:>{widths[3]}}")
    failed = sum(not check.passed for check in checks)
    print(f"\n{len(checks)} checks, {failed} failed, {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
