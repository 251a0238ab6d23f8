"""What all clients share: checks, and the packaged bundle in a place from which the repository is not reachable."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from environments import BASE, REPOSITORY, Environment, ensure_environment
from scans import Scans, make_scans

from custom.data.datalist import ensure_phantom

__all__ = ["Check", "Context", "expect", "variables_of_a_client"]

RUN_SECONDS = 900
PHANTOM_SPACING = 3.0  # mm: a translation takes seconds
PHANTOM_COUNTS = (2, 2, 2)  # each of two processes has a subject
RIVAL = """
import sys, torch
from custom.rivals import RegGAN
torch.manual_seed(0)
network = RegGAN(["t1", "t1ce", "t2", "flair"], ("t1", "t2"), size="small", intensity_scale="brain")
torch.save(network.state_dict(), sys.argv[1])
"""
SHOWN = 3000  # characters of what a failed command printed


class Check(NamedTuple):
    """What one check of one client found."""

    client: str
    check: str
    passed: bool
    seconds: float
    message: str


def expect(true: bool, message: str) -> None:
    """Fail the check that is running, with a message of what was found, unless ``true``."""
    if not true:
        raise AssertionError(message)


class Context:
    """The packaged bundle, and where and with what clients run.

    Attributes:
        folder: temporary, outside the repository.
        artifact: the zip.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifact = self._package(folder / "dist")

    def _package(self, out: Path, *options: Any) -> Path:
        _run([sys.executable, "-m", "custom", "package", "--out", out, *options], REPOSITORY, RUN_SECONDS, {})
        (artifact,) = out.glob("*.zip")
        return artifact

    @cached_property
    def rival(self) -> Path:
        """The zip of a rival's bundle, T1 to T2; its weights are untrained, as no check looks at what they give."""
        weights = self.folder / "rival.pt"
        _run([sys.executable, "-c", RIVAL, weights], REPOSITORY, RUN_SECONDS, {})
        return self._package(self.folder / "rival", "--weights", weights)

    def room(self, client: str) -> Path:
        """A new folder for a client's files."""
        room = self.folder / client
        room.mkdir(exist_ok=True)
        return room

    def unpack(self, folder: Path, artifact: Path | None = None) -> Path:
        """The bundle's own folder, after unpacking the zip in ``folder``: each client may change its copy."""
        with zipfile.ZipFile(artifact or self.artifact) as archive:
            archive.extractall(folder)
            return folder / archive.namelist()[0].partition("/")[0]

    @cached_property
    def bundle(self) -> Path:
        """An unpacked bundle that nobody changes."""
        return self.unpack(self.folder / "unpacked")

    @cached_property
    def phantoms(self) -> Path:
        """A data set of small phantoms with its datalist: two to train with, two for validation, two for test."""
        return ensure_phantom(self.folder / "phantoms", counts=PHANTOM_COUNTS, spacing=PHANTOM_SPACING)

    @cached_property
    def scans(self) -> Scans:
        """Scans with different axes, made of a phantom."""
        return make_scans(next(self.phantoms.glob("*/*_t1.nii.gz")), self.room("scans"))

    def python(
        self,
        *command: Any,
        environment: Environment = BASE,
        cwd: Path | None = None,
        timeout: float = RUN_SECONDS,
        expected: int = 0,
        **variables: str,
    ) -> str:
        """Run Python of an environment with these arguments, from ``cwd`` or an empty folder.

        Args:
            command: such as ``"-m", "monai.bundle", "run"`` or ``"-c", code``.
            environment: whose Python.
            cwd: working directory.
            timeout: seconds.
            expected: exit status.
            variables: added to the environment's variables.

        Returns:
            What it printed on stdout; on stderr, if ``expected`` is not 0.

        Raises:
            RuntimeError: for another exit status, with the end of what it printed.
        """
        python = ensure_environment(environment)
        return _run([python, *command], cwd or self.room("elsewhere"), timeout, variables, expected)

    def bundle_command(self, *command: str, timeout: float = RUN_SECONDS, expected: int = 0, **options: Any) -> str:
        """``python -m monai.bundle COMMAND --key value ...``, see :meth:`python`."""
        flags = [part for key, value in options.items() for part in (f"--{key}", value)]
        return self.python("-m", "monai.bundle", *command, *flags, timeout=timeout, expected=expected)

    def check(self, client: str, name: str, function: Callable[[], str | None]) -> Check:
        """Run a check: it passes unless it raises; what it returns says what was found."""
        start = time.perf_counter()
        try:
            message, passed = function() or "", True
        except Exception as error:
            message, passed = f"{type(error).__name__}: {error}", False
        return Check(client, name, passed, time.perf_counter() - start, message)


def variables_of_a_client() -> dict[str, str]:
    """The environment's variables without what would lead to this checkout; a CPU is enough for every client."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**inherited, "CUDA_VISIBLE_DEVICES": ""}


def _run(command: list[Any], cwd: Path, timeout: float, variables: dict[str, str], expected: int = 0) -> str:
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
        env={**variables_of_a_client(), **variables},
    )  # fmt: skip
    if result.returncode != expected:
        said = " ".join(map(str, command[1:]))
        raise RuntimeError(
            f"status {result.returncode} of: {said[:300]}\n{result.stdout[-SHOWN:]}{result.stderr[-SHOWN:]}"
        )
    return result.stderr if expected else result.stdout
