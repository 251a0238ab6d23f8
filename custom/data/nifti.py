"""NIfTI and Analyze files, read by nibabel once their content is known to be whole.

nibabel reads as many bytes as it needs and so never comes to the checksum at the end of a gzip stream. Here the stream
is read to its end. A file without compression has no checksum; what can be known of it is its size.

Source: RFC 1952 (gzip); https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
from nibabel.spatialimages import SpatialImage

from custom.data.damage import INFLATION, DamagedFileError, check_number, check_size, damaged

__all__ = ["is_nifti", "lacks_orientation", "load_header", "load_nifti"]

SUFFIXES = (".nii", ".hdr", ".img")
SINGLE = (nib.Nifti1Image, nib.Nifti2Image)
PAIRS = (nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm2AnalyzeImage, nib.Spm99AnalyzeImage, nib.AnalyzeImage)
GZIP_MARK = b"\x1f\x8b"
GZIP = 31  # zlib: a stream of gzip, whose checksum and length are verified
HEADER_BYTES = 540  # of NIfTI-2, the longest
LARGEST_HEADER = 2**20  # of a pair's header file with its extensions
PIECE = 2**18  # bytes read, and decompressed, at once: the processor's cache holds them


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name is that of NIfTI or Analyze, compressed or not."""
    return Path(path).name.lower().removesuffix(".gz").endswith(SUFFIXES)


def load_nifti(path: str | os.PathLike[str]) -> SpatialImage:
    """nibabel's image of a NIfTI or Analyze 7.5 file, or of either file of a pair.

    Whether it is compressed follows from its first bytes, whatever its name says.

    Raises:
        DamagedFileError: for a stream whose checksum or length is wrong, that ends early or is followed by something
            else, and where the header promises more or fewer bytes than there are.
        ValueError: for another file, or more voxels than are read.
    """
    layout = _layout(Path(path))
    image = layout.parts["image"]
    size = image.stat().st_size
    if layout.bytes > INFLATION * size:
        raise damaged(image, f"the {layout.bytes:,} bytes that its header promises", f"{size:,}")
    if not any(_is_compressed(f) or f.name.lower().endswith(".gz") for f in layout.parts.values()):
        check_size(image, size, layout.bytes)
        return layout.kind.from_filename(str(path))
    content = {part: _content(f, layout.bytes if f is image else LARGEST_HEADER) for part, f in layout.parts.items()}
    check_size(image, len(content["image"]), layout.bytes)
    return _from_memory(path, layout, content)


def load_header(path: str | os.PathLike[str]) -> SpatialImage:
    """As :func:`load_nifti`, for the shape, affine and header alone: its voxels are not read, nor can they be."""
    layout = _layout(Path(path))
    return _from_memory(path, layout, {part: _start(f, LARGEST_HEADER) for part, f in layout.parts.items()})


class _Layout(NamedTuple):
    """Files of an image, the class of nibabel that reads them, and how many bytes the one with the voxels must have."""

    parts: dict[str, Path]
    kind: Any
    bytes: int


def _layout(file: Path) -> _Layout:
    single = file.name.lower().removesuffix(".gz").endswith(".nii")
    parts = {"image": file} if single else _pair(file)
    start = _start(parts["image" if single else "header"], HEADER_BYTES)
    kind = next((k for k in (SINGLE if single else PAIRS) if k.header_class.may_contain_header(start)), None)
    if kind is None:
        raise damaged(file, f"the header of {'NIfTI' if single else 'NIfTI or Analyze'}", "another content")
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
    voxels = math.prod(int(n) for n in header.get_data_shape())
    check_number(file, voxels)
    return _Layout(parts, kind, int(header.get_data_offset()) + voxels * header.get_data_dtype().itemsize)


def _from_memory(path: str | os.PathLike[str], layout: _Layout, content: Mapping[str, bytes | bytearray]) -> Any:
    places = layout.kind.filespec_to_file_map(str(path))
    for part, file in layout.parts.items():
        places[part] = nib.FileHolder(filename=str(file), fileobj=BytesIO(content[part]))
    return layout.kind.from_file_map(places)


def lacks_orientation(image: SpatialImage) -> bool:
    """Whether an image's affine is the default of its format: how its axes lie in the patient, nothing says."""
    if isinstance(image, nib.Nifti1Pair | nib.Nifti2Pair):
        return int(image.header["qform_code"]) <= 0 and int(image.header["sform_code"]) <= 0
    if not isinstance(image, nib.AnalyzeImage):
        return False
    matrix = image.file_map.get("mat") if image.file_map else None  # SPM wrote the affine beside its images
    return not (matrix and matrix.filename and Path(matrix.filename).is_file())


def _pair(file: Path) -> dict[str, Path]:
    """Header and image of a pair, from the name of either; each may be compressed."""
    bare = file.with_suffix("") if file.name.lower().endswith(".gz") else file
    found = {}
    for part, suffix in (("header", ".hdr"), ("image", ".img")):
        if bare.suffix.lower() == suffix:
            found[part] = file
            continue
        suffix = suffix.upper() if bare.suffix.isupper() else suffix
        names = [bare.with_suffix(suffix), bare.with_suffix(f"{suffix}.gz")]
        other = next((name for name in names if name.is_file()), None)
        if other is None:
            raise FileNotFoundError(
                f"{file}: expected {names[0].name} beside it, the other file of the pair; found no file. Add it."
            )
        found[part] = other
    return found


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as source:
        return source.read(2) == GZIP_MARK


def _start(file: Path, most: int) -> bytes:
    """The first bytes of a file's content, ``most`` at most."""
    with file.open("rb") as source:
        start = source.read(most)
    try:
        return zlib.decompressobj(GZIP).decompress(start, most) if start[:2] == GZIP_MARK else start
    except zlib.error as error:
        raise _damaged(file, error) from error


def _content(file: Path, most: int) -> bytes | bytearray:
    """Content of a file, decompressed where it is gzip's; an error as soon as it exceeds ``most`` bytes."""
    size = file.stat().st_size
    if not _is_compressed(file):
        check_size(file, size, min(size, most))
        return file.read_bytes()
    content, stream = bytearray(), zlib.decompressobj(GZIP)
    with file.open("rb") as source:
        while piece := source.read(PIECE):
            while piece:
                if stream.eof:  # another stream may follow, and zeros that fill up a block
                    if not (piece := piece.lstrip(b"\0")):
                        break
                    stream = zlib.decompressobj(GZIP)
                try:
                    content += stream.decompress(piece, PIECE)
                except zlib.error as error:
                    raise _damaged(file, error) from error
                if len(content) > most:
                    raise damaged(file, f"the {most:,} bytes that its header promises", "more")
                piece = stream.unused_data if stream.eof else stream.unconsumed_tail
    if not stream.eof:
        raise damaged(file, "a whole gzip stream", f"one that ends early, after {size:,} bytes")
    return content


def _damaged(file: Path, error: zlib.error) -> DamagedFileError:
    said = str(error).rpartition(": ")[2]
    return damaged(file, "a whole gzip stream", f"a damaged one ({said})")
