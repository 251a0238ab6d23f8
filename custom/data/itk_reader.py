"""NRRD, MetaImage and what else ITK reads, once their content is known to be whole.

ITK reads a damaged compressed image without a word: MetaImage's checksum is never looked at, NRRD's not always. A
stream's checksum is that of the voxels, so it is compared with those that ITK gives, which is faster than to decompress
them here. Without compression there is no checksum, only the size.

Source: https://teem.sourceforge.net/nrrd/format.html; https://itk.org/Wiki/MetaIO/Documentation
"""

from __future__ import annotations

import locale
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from monai.data import ITKReader
from monai.utils import ensure_tuple

from custom.data.damage import IMAGE, INFLATION, check_number, check_size, damaged

__all__ = ["ItkReader", "read_information"]

LONGEST_HEADER = 2**20  # bytes
AXES = (2, 3, 4)  # of images that are read; only those of 3 are scans, which is said later
NRRD = (".nrrd", ".nhdr")
META_IMAGE = (".mha", ".mhd")
PATIENT_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")
META_IMAGE_MATRIX = ("transformmatrix", "rotation", "orientation")
KNOWN_ORIENTATION = ("MINCImageIO", "HDF5ImageIO", "MGHImageIO")  # formats that always state it


class TextHeader(NamedTuple):
    """What a text header says of its voxels; of formats without one only the file is known.

    Attributes:
        data: file that holds them.
        start: where they begin in it; None where the header does not tell simply.
        encoding: ``raw``, ``compressed``, or another name.
        has_orientation: whether it says how the axes lie in the patient.
    """

    data: Path
    start: int | None
    encoding: str
    has_orientation: bool


@contextmanager
def _plain_numbers() -> Iterator[None]:
    """Within it numbers have a decimal point: where a program has asked for a comma, ITK 5.4 finds no spacing in NRRD.

    ITK itself leaves the process in the locale "C" where it reads VTK: text would be taken for ASCII from then on.
    """
    before = locale.setlocale(locale.LC_ALL)
    if locale.localeconv()["decimal_point"] != ".":
        locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


class ItkReader(ITKReader):
    """MONAI's for one whole file.

    Attributes:
        lacks_orientation: whether the axes of the image that was read last are a default of ITK's.
    """

    lacks_orientation = False

    @_plain_numbers()
    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        import itk  # takes seconds to load: only where its formats are read

        (name,) = ensure_tuple(data)
        file = Path(name)
        header, io = _text_header(file), read_information(file)
        axes = io.GetNumberOfDimensions()
        check_number(file, math.prod(io.GetDimensions(axis) for axis in range(axes)))
        _check_axes(file, axes)  # to say so, ITK loads all that it has: 650 MiB
        _check_length(header or TextHeader(file, None, "", has_orientation=False), io.GetImageSizeInBytes())
        image = itk.imread(str(file), imageio=io, **kwargs)
        if header and header.encoding == "compressed" and io.GetNumberOfComponents() == 1:
            values = np.ascontiguousarray(itk.array_view_from_image(image))
            is_big_endian = io.GetByteOrder() == itk.CommonEnums.IOByteOrder_BigEndian
            _check_sum(header.data, values.byteswap() if is_big_endian else values)
        self.lacks_orientation = not (header.has_orientation if header else io.GetNameOfClass() in KNOWN_ORIENTATION)
        return image


@_plain_numbers()
def read_information(file: Path) -> Any:
    """ITK's ``ImageIO`` of a file, its header read.

    Raises:
        ValueError: if ITK knows no such format, or its header says that there are more axes than ITK has room for.
    """
    import itk

    if file.suffix.lower() in META_IMAGE:
        _check_axes(file, _fields(file, "=", end_of="elementdatafile")[0].get("ndims"))
    io = itk.ImageIOFactory.CreateImageIO(str(file), itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise damaged(file, IMAGE, "none in a format that ITK knows")
    io.SetFileName(str(file))
    io.ReadImageInformation()
    return io


def _check_axes(file: Path, axes: int | str | None) -> None:
    """Refuse a number of axes that no scan has; where MetaImage says hundreds, ITK writes beyond its arrays."""
    if str(axes) not in map(str, AXES):
        raise ValueError(f"{file}: expected 3 axes; found {axes or 'no number'} in its header. Name a 3D image.")


def _check_length(header: TextHeader, promised: int) -> None:
    """Refuse a header that promises more than its file can hold, before memory is taken for it."""
    size, is_raw = header.data.stat().st_size, header.encoding == "raw"
    if is_raw and header.start is not None:
        check_size(header.data, size - header.start, promised)
    if promised > (size if is_raw else INFLATION * size):
        raise damaged(header.data, f"the {promised:,} bytes that its header promises", f"{size:,}")


def _check_sum(file: Path, values: np.ndarray) -> None:
    """Compare the checksum at the end of a compressed stream with that of the voxels that were made of it."""
    with file.open("rb") as source:
        source.seek(-8, os.SEEK_END)
        end = source.read()
    content = values.reshape(-1).view(np.uint8).data
    length = (values.nbytes % 2**32).to_bytes(4, "little")
    of_gzip = end[4:] == length and end[:4] == zlib.crc32(content).to_bytes(4, "little")
    if not of_gzip and end[4:] != zlib.adler32(content).to_bytes(4, "big"):
        raise damaged(file, IMAGE, "a damaged compressed stream (its checksum is not that of the voxels)")


def _text_header(file: Path) -> TextHeader | None:
    """The text header of NRRD or MetaImage; None for other formats."""
    if file.suffix.lower() in NRRD:
        fields, end = _fields(file, ":", end_of="")
        space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
        known = space in PATIENT_SPACES and "space directions" in fields
        name = fields.get("data file", fields.get("datafile", ""))
        simple = not any(int(fields.get(k, fields.get(k.replace(" ", ""), 0))) for k in ("byte skip", "line skip"))
        kinds = {"gzip": "compressed", "gz": "compressed"}
        encoding = fields.get("encoding", "").lower()
        start = (0 if name else end) if simple else None
        return TextHeader(_data_file(file, name), start, kinds.get(encoding, encoding), known)
    if file.suffix.lower() in META_IMAGE:
        fields, end = _fields(file, "=", end_of="elementdatafile")
        name = fields.get("elementdatafile", "")
        is_local = name.upper() == "LOCAL"
        start = end if is_local else int(fields.get("headersize", 0))
        encoding = "raw" if fields.get("binarydata", "true").lower() in ("true", "1") else "text"
        encoding = "compressed" if fields.get("compresseddata", "").lower() in ("true", "1") else encoding
        known = any(key in fields for key in META_IMAGE_MATRIX)
        return TextHeader(_data_file(file, "" if is_local else name), start if start >= 0 else None, encoding, known)
    return None


def _fields(file: Path, separator: str, *, end_of: str) -> tuple[dict[str, str], int]:
    """Fields of a text header, names in lower case, and where what follows it begins.

    Args:
        file: to read.
        separator: of a name and its value.
        end_of: name of the last field; or none, if an empty line ends the header.
    """
    fields: dict[str, str] = {}
    with file.open("rb") as source:
        while source.tell() < LONGEST_HEADER and (line := source.readline(LONGEST_HEADER)):
            name, found, value = line.decode("latin-1").partition(separator)
            key = name.strip().lower()
            if found:
                fields[key] = value.strip()
            if (end_of and key == end_of) or (not end_of and not line.strip()):
                break
        return fields, source.tell()


def _data_file(header: Path, name: str) -> Path:
    """Where the voxels are: the ``header`` itself, or a file beside or below it, which alone are read."""
    if not name:
        return header
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in path.parts:
        raise ValueError(f"{header}: expected its voxels in a file beside it; found {name!r}. Put the file there.")
    if name.split()[0].upper() == "LIST" or "%" in name:
        raise ValueError(f"{header}: expected its voxels in one file; found a list of them. Save it as one file.")
    if not (header.parent / path).is_file():
        raise FileNotFoundError(f"{header}: expected its voxels in {header.parent / path}; found no file. Add it.")
    return header.parent / path
