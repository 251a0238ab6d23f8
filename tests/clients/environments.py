"""The environments that clients run in: built once by venv and pip, and again when what they hold changes.

``custom`` is installed in none of them: a client must find the packaged bundle's own copy, or fail.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

__all__ = ["BASE", "Environment", "ensure_environment"]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".venv-clients"
METADATA = REPOSITORY / "bundle" / "configs" / "metadata.json"
INSTALL_SECONDS = 1800
# what some commands of monai.bundle need beside the bundle's own requirements
TOOLS = ("jsonschema", "onnx", "onnxscript", "onnxruntime")


class Environment(NamedTuple):
    """What a client's Python holds.

    Attributes:
        name: of its folder in ``.venv-clients``.
        requirements: for pip.
        without_dependencies: installed after them with ``--no-deps``.
        emptied: files of site-packages whose content is taken away afterwards.
        imports: modules that must be importable in the end.
        on_base: whether the packages of ``BASE`` are seen behind its own; own versions come first.
    """

    name: str
    requirements: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    on_base: bool = True

    @property
    def digest(self) -> str:
        """Of everything that the folder's content depends on."""
        below = BASE.digest if self.on_base else ""
        return hashlib.sha256(json.dumps([sys.version, below, *self]).encode()).hexdigest()


def bundle_requirements() -> tuple[str, ...]:
    """The exact versions that the bundle's metadata declares, as requirements."""
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    versions = {
        "torch": metadata["pytorch_version"],
        "monai": metadata["monai_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    return tuple(f"{name}=={number}" for name, number in versions.items())


BASE = Environment(
    "base",
    (*bundle_requirements(), *(f"{tool}=={version(tool)}" for tool in TOOLS)),
    imports=("monai.bundle", "ignite", "itk", "onnxruntime"),
    on_base=False,
)


def ensure_environment(environment: Environment) -> Path:
    """Python of an environment, which is built where it is missing or what it should hold has changed.

    Raises:
        RuntimeError: if pip fails or a module cannot be imported, with the end of what was printed.
    """
    folder = FOLDER / environment.name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if stamp.is_file() and stamp.read_text() == environment.digest:
        return python
    if environment.on_base:
        ensure_environment(BASE)
    print(f"building {folder.relative_to(REPOSITORY)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    venv.create(folder, symlinks=True, with_pip=True)
    packages = _site_packages(python)
    if environment.on_base:
        (packages / "base.pth").write_text(f"{_site_packages(FOLDER / BASE.name / 'bin' / 'python')}\n")
    if environment.requirements:
        _run(python, "-m", "pip", "install", "--quiet", *environment.requirements)
    if environment.without_dependencies:
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", *environment.without_dependencies)
    for name in environment.emptied:
        (packages / name).write_text("")
    for module in environment.imports:
        _run(python, "-c", f"import {module}")
    stamp.write_text(environment.digest)
    return python


def _site_packages(python: Path) -> Path:
    return Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def _run(python: Path, *command: str) -> str:
    result = subprocess.run(
        [python, *command], cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed in {python.parents[1]}:\n{result.stderr[-3000:]}")
    return result.stdout
