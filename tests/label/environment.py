"""The environment that MONAI Label's server runs in: built once, by the standard library and pip alone."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

__all__ = ["CannotInstall", "ensure_environment"]

HERE = Path(__file__).resolve().parent
METADATA = HERE.parents[1] / "bundle" / "configs" / "metadata.json"
WITH_DEPENDENCIES = HERE / "requirements.txt"
WITHOUT_DEPENDENCIES = HERE / "requirements_no_deps.txt"


class CannotInstall(Exception):
    """The packages cannot be had here: no network, no build for this platform."""


def ensure_environment(folder: Path) -> Path:
    """Python of the environment in ``folder``, which is built where it is missing or its recipe has changed.

    ``custom`` is not installed there: the server must find the packaged bundle's own copy, or fail.

    Raises:
        CannotInstall: if pip fails; the message ends with what pip said.
        RuntimeError: if the packages are there but MONAI Label cannot be imported.
    """
    pinned = _pinned()
    recipe = "\n".join([*pinned, WITH_DEPENDENCIES.read_text(), WITHOUT_DEPENDENCIES.read_text()])
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if stamp.is_file() and stamp.read_text() == recipe:
        return python
    print(f"building {folder}: several GB and minutes, once", flush=True)
    stamp.unlink(missing_ok=True)
    if not python.is_file():
        venv.create(folder, symlinks=True, with_pip=True)
    _pip(python, *pinned, "-r", str(WITH_DEPENDENCIES))
    _pip(python, "--no-deps", "-r", str(WITHOUT_DEPENDENCIES))
    _mend_torchvision(python)
    _import(python, "monailabel.app")
    stamp.write_text(recipe)
    return python


def _pinned() -> list[str]:
    """The exact versions that the bundle declares, as requirements."""
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    versions = {
        "torch": metadata["pytorch_version"],
        "monai": metadata["monai_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    return [f"{name}=={version}" for name, version in versions.items()]


def _pip(python: Path, *arguments: str) -> None:
    result = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise CannotInstall(lines[-1])


def _mend_torchvision(python: Path) -> None:
    """Make a CUDA build of torchvision importable beside a CPU build of torch.

    It registers meta kernels for operators that it cannot load then; MONAI Label imports torchvision but uses none.
    """
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0:
        return
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(found.stdout.strip()) / "torchvision" / "_meta_registrations.py").write_text("")
    _import(python, "torchvision")


def _import(python: Path, module: str) -> None:
    result = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"{python}: expected to import {module}; found:\n{result.stderr[-2000:]}\n"
            "Add what is missing to tests/label/requirements.txt."
        )
