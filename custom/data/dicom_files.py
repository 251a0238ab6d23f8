"""DICOM files: which files of a folder are, what holds slices, and whether one is whole.

GDCM, which decodes the pixels, takes as much memory as a damaged file asks for. So its lengths are compared with the
file's before, and its number of voxels with what an image can have.

Source: DICOM PS3.10 2024, 7.1 (preamble and prefix).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from custom.data.damage import INFLATION, check_number
from custom.data.dicom_lengths import PREAMBLE, PREFIX, Encoding, check_lengths

__all__ = ["DICOM_SUFFIXES", "dicom_files", "dicom_inputs", "is_dicom", "read_header", "unreadable"]

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
OTHER_SUFFIXES = (".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw")
DIRECTORY_FILE = "DICOMDIR"
# a first element of group 8 or 2, without the preamble that the standard wants before it: its tag, and either the two
# letters of a type or a length below 256
BARE_START = re.compile(rb"[\x02\x08]\0[\x00\x01\x05\x08\x12-\x16]\0(?:[A-Z]{2}|.\0\0\0)", re.DOTALL)

PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)  # whole numbers; floating-point numbers of two sizes
VOXEL_FACTORS = ("Rows", "Columns", "NumberOfFrames")


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is DICOM, by its suffix or by the mark in its header."""
    file = Path(path)
    suffix = file.suffix.lower()
    if file.name.upper() == DIRECTORY_FILE or suffix in OTHER_SUFFIXES or not file.is_file():
        return False
    if suffix in DICOM_SUFFIXES:
        return True
    with file.open("rb") as stream:
        start = stream.read(PREAMBLE + len(PREFIX))
    return start[PREAMBLE:] == PREFIX or bool(BARE_START.match(start))


def dicom_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The DICOM files that lie in a folder, not those in its subfolders, sorted by name."""
    return sorted(file for file in Path(folder).iterdir() if not file.name.startswith(".") and is_dicom(file))


def dicom_inputs(folder: str | os.PathLike[str]) -> list[Path]:
    """What to read for the DICOM files that lie in a folder: each multi-frame file, and the folder for single slices.

    A file that cannot be read counts as a slice, so that it is found out; what holds no image does not count.
    """
    files = dicom_files(folder)
    frames = [_number_of_frames(file) for file in files]
    several = [file for file, number in zip(files, frames, strict=True) if number > 1]
    return several + ([Path(folder)] if 1 in frames else [])


def _number_of_frames(file: Path) -> int:
    """0 for an object without an image; 1 for a file that cannot be read."""
    try:
        header = pydicom.dcmread(file, specific_tags=["NumberOfFrames", "Rows", "SOPClassUID"], force=True)
        return int(header.get("NumberOfFrames") or 1) if "Rows" in header or not _is_no_image(header) else 0
    except Exception:  # whatever a broken file provokes
        return 1


def _is_no_image(header: Dataset) -> bool:
    """Whether the object is of a class that holds no image, such as a report or a presentation state."""
    kind = header.get("SOPClassUID")
    return kind is not None and kind.name != kind and "Image Storage" not in kind.name


def read_header(file: Path) -> Dataset | None:
    """The header of an image, whose file is whole as far as that can be known.

    Returns:
        None for objects of a study that hold no image, such as reports and presentation states.

    Raises:
        ValueError: for a damaged file.
    """
    pixels: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, representation: str | None, length: int) -> bool:
        pixels.extend([(tag, representation, length)] if tag in PIXELS else [])
        return bool(pixels)

    try:
        with pydicom.config.disable_value_validation(), file.open("rb") as stream:
            header = read_partial(stream, at_pixels, force=True)
            if "Rows" not in header and _is_no_image(header):
                return None
            voxels = math.prod(int(header.get(key) or 1) for key in VOXEL_FACTORS)
            needed = voxels * int(header.get("BitsAllocated") or 1) // 8
            if pixels:
                check_lengths(file, _encoding(header, pixels[0][1]))
    except Exception as error:
        raise ValueError(unreadable(file, error)) from error
    if "Rows" not in header or not pixels:
        raise ValueError(unreadable(file, "the header of an image is not there or cut off"))
    if pixels[0][0] == PIXELS[0] and pixels[0][2] < needed:  # of compressed pixels it is the largest number
        raise ValueError(unreadable(file, f"{pixels[0][2]} bytes of pixels; {needed} are needed"))
    check_number(file, voxels)
    if needed > INFLATION * file.stat().st_size:
        raise ValueError(unreadable(file, f"{file.stat().st_size} bytes; {needed} of pixels cannot be in them"))
    return header


def _encoding(header: Dataset, representation: str | None) -> Encoding | None:
    """Of a file's data set, by its header and by the type that is written before its pixels."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return None
    order: Literal["big", "little"] = "big" if syntax == ExplicitVRBigEndian else "little"
    segments = 0
    if syntax == RLELossless:  # one for each byte of a voxel
        segments = int(header.get("SamplesPerPixel") or 1) * (int(header.get("BitsAllocated") or 8) // 8)
    return Encoding(representation is not None, order, segments)


def unreadable(file: Path, detail: object) -> str:
    """What is said of a damaged file."""
    first = (str(detail).strip() or "no detail").splitlines()[0].rstrip(".")
    return f"{file}: expected a readable DICOM slice; found a damaged file ({first}). Fetch it again."
