"""What tells a damaged file from a whole one, for every reader: sizes that must agree, and a limit of what is read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["INFLATION", "MOST_VOXELS", "DamagedFileError", "check_number", "check_size", "damaged"]

MOST_VOXELS = 2**30  # 1024³, 4 GiB as float32: scans of a brain have some 10⁷
INFLATION = 1032  # no deflated stream holds more bytes per byte


class DamagedFileError(ValueError):
    """A file that is not as it was written."""


def damaged(file: Path, expected: str, found: str) -> DamagedFileError:
    """The error for ``file``, to be raised by whoever found it."""
    return DamagedFileError(f"{file}: expected {expected}; found {found}. Fetch the file again, or write it anew.")


def check_number(file: Path, voxels: int) -> None:
    """Refuse a number of voxels that no image has, before memory is taken for them."""
    if not 0 < voxels <= MOST_VOXELS:
        raise ValueError(
            f"{file}: expected 1 to {MOST_VOXELS:,} voxels (1024×1024×1024); found {voxels:,} in its header. "
            "Correct the header, or crop or resample the image."
        )


def check_size(file: Path, size: int, promised: int) -> None:
    """Refuse a file whose content is not of the ``size`` in bytes that its header promises."""
    if size != promised:
        raise damaged(file, f"the {promised:,} bytes that its header promises", f"{size:,}")
