"""Where the bundle lies: its ``configs`` and ``models`` beside this package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundle_folder", "config_folder"]

ROOT = Path(__file__).resolve().parents[2]


def bundle_folder() -> Path:
    """The bundle beside this package: ``bundle/`` of the development tree, or the unpacked artifact itself.

    Raises:
        FileNotFoundError: if it is in neither place, such as after an installation of the package alone.
    """
    for folder in (ROOT / "bundle", ROOT):
        if (folder / "configs" / "inference.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{ROOT}: expected bundle/configs/inference.json or configs/inference.json beside the package; found neither. "
        "Name the bundle's folder or zip."
    )


def config_folder() -> Path:
    """The ``configs`` of :func:`bundle_folder`."""
    return bundle_folder() / "configs"
