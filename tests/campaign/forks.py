"""Command lines in forks of this process, which has the libraries loaded: what a command costs is not its imports.

The process that forks must have no threads of its own, so it only forks, waits and reads files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Outcome", "command", "fork"]

LIBRARIES = (
    "monai.bundle", "monai.engines", "monai.handlers", "monai.networks.nets", "nibabel", "pydicom", "itk", "fire",
    "scipy.ndimage", "scipy.stats", "skimage.metrics", "matplotlib.figure", "PIL.Image", "jinja2",
    "torch.utils.tensorboard", "torch.optim.lr_scheduler", "custom.api", "custom.training.trainer",
    "custom.training.checkpoints", "custom.commands.compare", "custom.preparation.prepare",
)  # fmt: skip


class Outcome(NamedTuple):
    """What became of a command.

    Attributes:
        status: exit status, negative for a signal that ended it.
        hung: whether it was still running after the seconds that it was given.
        seconds: of computing that it took; those of a clock depend on what else the machine does.
        megabytes: of memory that it held at most, with the libraries'.
        out, err: what it printed.
    """

    status: int
    hung: bool
    seconds: float
    megabytes: float
    out: str
    err: str


def load_libraries() -> None:
    """Import what the commands use, once, without threads."""
    import torch

    torch.set_num_threads(1)
    for name in LIBRARIES:
        __import__(name)


def command(words: Sequence[object]) -> Callable[[], None]:
    """``python -m <words>`` as a function."""

    def run() -> None:
        sys.argv[:] = [str(word) for word in words]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

    return run


def fork(
    action: Callable[[], None],
    folder: Path,
    *,
    seconds: float,
    kill_after: float | None = None,
    limits: Sequence[tuple[int, int]] = (),
) -> Outcome:
    """Run ``action`` in a fork, as a program that starts in ``folder``.

    Args:
        action: what to run.
        folder: working directory; what is printed goes into ``.stdout`` and ``.stderr`` of its parent.
        seconds: after which it is killed as hung.
        kill_after: seconds after which it is killed on purpose.
        limits: of ``resource``, each with its bytes.
    """
    out, err = folder.parent / f".{folder.name}.stdout", folder.parent / f".{folder.name}.stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(action, folder, out, err, limits)
    deadline = start + (seconds if kill_after is None else min(kill_after, seconds))
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.005)
    waited, took = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    hung = code == -signal.SIGKILL and (kill_after is None or waited >= seconds)
    texts = (file.read_text(errors="replace") for file in (out, err))
    return Outcome(code, hung, took, usage.ru_maxrss / 1024, *texts)


def _become(action: Callable[[], None], folder: Path, out: Path, err: Path, limits: Sequence[tuple[int, int]]) -> None:
    """The fork's life: it never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        files = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in (out, err)]
        for number, file in enumerate((null, *files)):
            os.dup2(file, number)
        for kind, most in limits:
            resource.setrlimit(kind, (most, most))
        action()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            traceback.print_exc()
        os._exit(status)
