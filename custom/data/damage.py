"""What tells a damaged file from a whole one, for every reader: checksums and sizes, and a limit of what is read.

Source: RFC 1952 (gzip).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

__all__ = ["GZIP", "IMAGE", "INFLATION", "DamagedFileError", "check_number", "check_size", "damaged", "inflate"]

MOST_VOXELS = 2**30  # 1024³, 4 GiB as float32: scans of a brain have some 10⁷
INFLATION = 1032  # no deflated stream holds more bytes per byte
GZIP = 31  # zlib: a stream of gzip, whose checksum and length are verified
PIECE = 2**18  # bytes read, and decompressed, at once: the processor's cache holds them

IMAGE = "a readable 3D image"


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


def inflate(file: Path, promised: int) -> np.ndarray:
    """What a file compressed by gzip holds: ``promised`` bytes, uint8, whose checksum is right.

    Raises:
        DamagedFileError: for anything else. Memory is taken for what is promised, and only if so much can be in it.
    """
    size = file.stat().st_size
    if promised > INFLATION * size:
        raise damaged(file, f"the {promised:,} bytes that its header promises", f"{size:,} compressed ones")
    content, filled, stream = np.empty(promised, np.uint8), 0, zlib.decompressobj(GZIP)
    view = content.data
    with file.open("rb") as source:
        while piece := source.read(PIECE):
            while piece:
                if stream.eof:  # another stream may follow, and zeros that fill up a block
                    if not (piece := piece.lstrip(b"\0")):
                        break
                    stream = zlib.decompressobj(GZIP)
                try:
                    part = stream.decompress(piece, PIECE)
                except zlib.error as error:
                    said = str(error).rpartition(": ")[2]
                    raise damaged(file, IMAGE, f"a damaged compressed stream ({said})") from error
                if filled + len(part) > promised:
                    raise damaged(file, f"the {promised:,} bytes that its header promises", "more")
                view[filled : filled + len(part)] = part
                filled += len(part)
                piece = stream.unused_data if stream.eof else stream.unconsumed_tail
    if not stream.eof:
        raise damaged(file, IMAGE, f"a compressed stream that ends early, after {size:,} bytes")
    check_size(file, filled, promised)
    return content
