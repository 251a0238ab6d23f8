"""NIfTI and Analyze files, read by nibabel once their content is known to be whole.

nibabel reads as many bytes as it needs and so never comes to the checksum at the end of a gzip stream. Here the stream
is read to its end. A file without compression has no checksum; what can be known of it is its size.

Source: RFC 1952 (gzip); https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import math
import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling

from custom.data.damage import GZIP, IMAGE, check_number, check_size, damaged, inflate

__all__ = ["is_nifti", "lacks_orientation", "load_header", "load_nifti", "load_numbers", "with_whole_file"]

SUFFIXES = (".nii", ".hdr", ".img")
SINGLE = (nib.Nifti1Image, nib.Nifti2Image)
PAIRS = (nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm2AnalyzeImage, nib.Spm99AnalyzeImage, nib.AnalyzeImage)
GZIP_MARK = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2, the longest
LARGEST_HEADER = 2**20  # with its extensions


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
    stored = load_numbers(path)
    scaled = apply_read_scaling(stored.numbers, np.float64(stored.slope), np.float64(stored.inter))
    image = type(stored.header)(scaled, stored.header.affine, stored.header.header)
    image.file_map = stored.header.file_map
    return image


class Stored(NamedTuple):
    """A file's numbers as they are stored; an intensity is slope · number + inter.

    Attributes:
        header: nibabel's image for shape, affine and header, of which the voxels cannot be read.
        numbers: in the file's type and order.
        slope, inter: of the intensities.
    """

    header: SpatialImage
    numbers: np.ndarray
    slope: float
    inter: float


def load_numbers(path: str | os.PathLike[str]) -> Stored:
    """As :func:`load_nifti`, without copies in another type."""
    layout = _layout(Path(path))
    header, file = _header(path, layout), layout.parts["image"]
    proxy = header.dataobj
    if _is_compressed(file):
        content = inflate(file, layout.bytes)
        numbers = np.ndarray(proxy.shape, proxy.dtype, buffer=content, offset=proxy.offset, order="F")
    else:
        check_size(file, file.stat().st_size, layout.bytes)
        mapped = np.memmap(file, proxy.dtype, mode="c", offset=proxy.offset, shape=proxy.shape, order="F")
        numbers = np.asarray(mapped)
    return Stored(header, numbers, float(proxy.slope), float(proxy.inter))


def load_header(path: str | os.PathLike[str]) -> SpatialImage:
    """As :func:`load_nifti`, for the shape, affine and header alone: its voxels are not read, nor can they be."""
    return _header(path, _layout(Path(path)))


def with_whole_file(image: SpatialImage) -> SpatialImage:
    """An image of nibabel's; if its voxels are in their file yet, they are read as :func:`load_nifti` does."""
    name = image.get_filename() if nib.is_proxy(image.dataobj) else None
    return type(image)(load_nifti(name).dataobj, image.affine, image.header) if name and is_nifti(name) else image


class _Layout(NamedTuple):
    """Files of an image, the first bytes of the one that holds its header, the class of nibabel for them, where the
    voxels begin, and where their file must end.
    """

    parts: dict[str, Path]
    start: bytes
    kind: Any
    offset: int
    bytes: int


def _layout(file: Path) -> _Layout:
    single = file.name.lower().removesuffix(".gz").endswith(".nii")
    parts = {"image": file} if single else _pair(file)
    start = _start(parts["image" if single else "header"], HEADER_BYTES)
    kind = next((k for k in (SINGLE if single else PAIRS) if k.header_class.may_contain_header(start)), None)
    if kind is None:
        raise damaged(file, IMAGE, f"no header of {'NIfTI' if single else 'NIfTI or Analyze'}")
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
    voxels = math.prod(int(n) for n in header.get_data_shape())
    check_number(file, voxels)
    sizes = np.abs(header["pixdim"][1:4])
    if not (sizes > 0).all() and ("sform_code" not in header or header["sform_code"] <= 0):
        raise ValueError(f"{file}: expected voxel sizes in mm; found {sizes.tolist()}. Correct its header.")
    offset = int(header.get_data_offset())
    if offset < (kind.header_class.single_vox_offset if single else 0):
        raise damaged(file, IMAGE, f"voxels that begin in the header, at byte {offset}")
    return _Layout(parts, start, kind, offset, offset + voxels * header.get_data_dtype().itemsize)


def _header(path: str | os.PathLike[str], layout: _Layout) -> SpatialImage:
    places = layout.kind.filespec_to_file_map(str(path))
    part = "header" if "header" in layout.parts else "image"
    most, start = min(layout.offset, LARGEST_HEADER) if part == "image" else LARGEST_HEADER, layout.start
    if len(start) == HEADER_BYTES < most:  # extensions follow
        start = _start(layout.parts[part], most)
    places[part] = nib.FileHolder(filename=str(layout.parts[part]), fileobj=BytesIO(start))
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
        raise damaged(file, IMAGE, "a damaged compressed stream") from error
