"""Reading of DICOM: which slices make a volume, where its voxels lie, and its intensities.

Headers are read by pydicom, since ITK does not give the frames of a multi-frame object; pixels by ITK, which decodes
every transfer syntax. What does not make one regular 3D grid is refused: nothing is guessed, sorted by name or taken as
the identity.

Source: DICOM PS3.3 2024, C.7.6.2 (image plane), C.7.6.16.2 (functional groups of multi-frame objects).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from pydicom.dataset import Dataset

from custom.data.damage import check_number
from custom.data.dicom_files import dicom_files, is_dicom, read_header, unreadable

__all__ = [
    "DicomReader",
    "DicomVolume",
    "Frame",
    "read_geometry",
]

# no other is refused: exports of MR images may say OT, or nothing
OTHER_MODALITIES = ("CT", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "SEG", "RTDOSE")

ORIENTATION_TOLERANCE = 1e-4  # of direction cosines: 0.03 mm at the edge of a field of view of 256 mm
REGULARITY_TOLERANCE = 0.01  # of the distance of slices, and in mm where that is more
# by one of these the volumes of a series differ that has several in one place
DISTINCTIVE = (
    "EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "DiffusionBValue", "DiffusionGradientOrientation",
    "TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", "AcquisitionTime", "ContentTime", "ImageType",
    "ComplexImageComponent", "ContrastBolusAgent",
)  # fmt: skip
UNIT_TOLERANCE = 1e-3  # of length and angle of the two axes of a slice


class Frame(NamedTuple):
    """One slice of a volume.

    Attributes:
        file: that holds it.
        number: of the frame in the file, from 0.
        dataset: the file's header.
        position: centre of the first voxel (x, y, z) in mm, LPS.
        axes: (2, 3) direction cosines along a row and along a column.
        spacing: (2,) mm between neighbours along a row and along a column.
        size: (2,) columns and rows.
        slope, intercept: of the intensities.
    """

    file: Path
    number: int
    dataset: Dataset
    position: np.ndarray
    axes: np.ndarray
    spacing: np.ndarray
    size: tuple[int, int]
    slope: float
    intercept: float


class DicomVolume(NamedTuple):
    """The slices of one regular grid, in order along the normal of the slices.

    Attributes:
        path: file or folder.
        frames: the slices.
        affine: (4, 4), voxel (column, row, slice) → mm, RAS.
    """

    path: Path
    frames: tuple[Frame, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return (*self.frames[0].size, len(self.frames))


class DicomReader(ImageReader):
    """MONAI's interface to :func:`read_geometry`: a folder with one series, or a multi-frame file.

    The array is float32 (column, row, slice) with the modality's rescale applied, slice by slice.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        return all(Path(name).is_dir() or is_dicom(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> DicomVolume:
        names = ensure_tuple(data)
        if len(names) != 1:
            raise ValueError(f"{names[0]}: expected one DICOM series; found a list of {len(names)}. Name its folder.")
        return read_geometry(names[0])

    def get_data(self, img: DicomVolume) -> tuple[np.ndarray, dict[str, Any]]:
        values = np.empty(img.shape, dtype=np.float32)
        files: dict[Path, list[int]] = {}
        for position, frame in enumerate(img.frames):
            files.setdefault(frame.file, []).append(position)
        for file, positions in files.items():
            _fill(values, file, [(k, img.frames[k]) for k in positions])
        return values, {
            MetaKeys.AFFINE: img.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: img.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }


def read_geometry(path: str | os.PathLike[str]) -> DicomVolume:
    """The slices of a DICOM volume and its grid; pixels are not read.

    Args:
        path: folder with the files of one series (other files in it are passed over), or a multi-frame file.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: for anything but one regular grid: no DICOM, an unreadable file, two series, slices of different
            size or orientation, two slices in one place, a missing slice, a sheared grid, or a slice whose position,
            orientation or spacing is missing or faulty.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected a DICOM series; found nothing there. Correct the path.")
    files = dicom_files(source) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source}: expected a folder with the files of a DICOM series; found none. Correct the path.")
    headers = [(file, header) for file in files if (header := read_header(file)) is not None]
    _check_not_mixed(source, headers)
    _check_one_series(source, headers)
    frames = [frame for file, header in headers for frame in _frames(file, header)]
    if len(frames) < 2:
        raise ValueError(
            f"{source}: expected a volume; found {len(frames) or 'no'} DICOM slice. Name the folder of its series, "
            f"such as {source.parent}." if source.is_file() else
            f"{source}: expected a volume; found {len(frames) or 'no'} DICOM slice. Add the rest of the series."
        )  # fmt: skip
    _check_alike(source, frames)
    check_number(source, math.prod((*frames[0].size, len(frames))))
    normal = np.cross(*frames[0].axes)
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    step = _regular_step(source, ordered, normal)
    first = ordered[0]
    affine = np.eye(4)
    affine[:3, :2] = first.axes.T * first.spacing
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    affine[:2] *= -1  # LPS to RAS
    return DicomVolume(source, tuple(ordered), affine)


def _check_not_mixed(source: Path, headers: Sequence[tuple[Path, Dataset]]) -> None:
    several = [file.name for file, header in headers if int(header.get("NumberOfFrames") or 1) > 1]
    if several and len(headers) > 1:
        raise ValueError(
            f"{source}: expected single slices, or one multi-frame file; found the multi-frame {several[0]} beside "
            f"{len(headers) - 1} other DICOM images. Name the file that is meant, or give each volume a folder of its "
            "own."
        )
    if len({header.get("SeriesInstanceUID") for _, header in headers}) == len(headers) > 2:
        raise ValueError(
            f"{source}: expected one Series Instance UID for the slices of a volume; found another on each of "
            f"{len(headers)} slices, as some programs for anonymisation write it. If they are one series, give all "
            "one UID, such as with `dcmodify -m 0020,000e=UID *.dcm`."
        )


def _check_one_series(source: Path, headers: Sequence[tuple[Path, Dataset]]) -> None:
    series: dict[str, list[tuple[Path, Dataset]]] = {}
    for file, header in headers:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if len(series) > 1:
        listed = "; ".join(
            f"{header.get('SeriesDescription', '') or uid!r} ({len(items)} files, such as {file.name})"
            for uid, items in series.items()
            for file, header in items[:1]
        )
        raise ValueError(
            f"{source}: expected one DICOM series; found {len(series)}: {listed}. Give each a folder of its own."
        )


def _frames(file: Path, header: Dataset) -> Iterable[Frame]:
    if header.get("Modality") in OTHER_MODALITIES:
        raise ValueError(f"{file}: expected an MR image; found the modality {header.Modality}. Name an MR series.")
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(f"{file}: expected grey values; found a colour image. Use the series that it was made from.")
    if "MOSAIC" in ensure_tuple(header.get("ImageType") or ()):
        raise ValueError(
            f"{file}: expected one slice a picture; found a Siemens mosaic, whose slices lie side by side in one. "
            "Convert the series with dcm2niix, and give the NIfTI file."
        )
    number = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if number > 1 and per_frame is None:
        raise ValueError(
            f"{file}: expected the position of each of {number} frames; found none in this multi-frame object "
            f"({header.SOPClassUID.name}). Export the series as single slices, or convert it to NIfTI."
        )
    if per_frame is None:
        return [_frame(file, 0, header, [header])]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    if len(per_frame) != number:
        raise ValueError(unreadable(file, f"{number} frames with {len(per_frame)} positions"))
    return [_frame(file, i, header, [groups, *shared]) for i, groups in enumerate(per_frame)]


def _frame(file: Path, number: int, header: Dataset, groups: Sequence[Dataset]) -> Frame:
    """``groups``: where to look for the attributes, first the frame's own."""

    def find(macro: str, keyword: str, count: int) -> np.ndarray:
        values = _lookup(groups, macro, keyword)
        try:
            with pydicom.config.disable_value_validation():
                found = np.array([float(v) for v in ensure_tuple(values)], dtype=np.float64)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.shape != (count,) or not np.isfinite(found).all():
            where = f", frame {number}" if len(groups) > 1 or groups[0] is not header else ""
            raise ValueError(
                f"{file}{where}: expected {count} numbers for {keyword}, which say where the slice lies; "
                f"found {'nothing' if values is None else str(values)}. Export the series anew."
            )
        return found

    axes = find("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=UNIT_TOLERANCE):
        raise ValueError(
            f"{file}: expected two perpendicular axes of length 1 for ImageOrientationPatient; found "
            f"{axes.ravel().tolist()}. Export the series anew."
        )
    spacing = find("PixelMeasuresSequence", "PixelSpacing", 2)[::-1]  # stored as distance of rows, of columns
    if not (spacing > 0).all():
        raise ValueError(f"{file}: expected PixelSpacing above 0; found {spacing.tolist()}. Export the series anew.")
    transform = "PixelValueTransformationSequence"
    return Frame(
        file,
        number,
        header,
        find("PlanePositionSequence", "ImagePositionPatient", 3),
        axes,
        spacing,
        (int(header.Columns), int(header.Rows)),
        float(_lookup(groups, transform, "RescaleSlope") or 1),
        float(_lookup(groups, transform, "RescaleIntercept") or 0),
    )


def _lookup(groups: Sequence[Dataset], macro: str, keyword: str) -> Any:
    """Value of an attribute: in the macro of a functional group, or in the data set of a single slice itself."""
    for group in groups:
        inner = group.get(macro)
        holder = inner[0] if inner else group
        if keyword in holder:
            return holder.get(keyword)
    return None


def _check_alike(source: Path, frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        pairs = {
            "orientation": (first.axes, frame.axes, ORIENTATION_TOLERANCE),
            "pixel spacing": (first.spacing, frame.spacing, ORIENTATION_TOLERANCE * first.spacing.min()),
            "size": (np.array(first.size), np.array(frame.size), 0),
        }
        for what, (a, b, tolerance) in pairs.items():
            if np.abs(a - b).max() > tolerance:
                raise ValueError(
                    f"{source}: expected slices of one {what}; found {a.ravel().tolist()} in {first.file.name} and "
                    f"{b.ravel().tolist()} in {frame.file.name}. Give each volume a folder of its own."
                )


def _regular_step(source: Path, frames: Sequence[Frame], normal: np.ndarray) -> np.ndarray:
    """mm from a slice to the next, LPS; the slices must lie on such steps."""
    positions = np.stack([frame.position for frame in frames])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    tolerance = max(REGULARITY_TOLERANCE, REGULARITY_TOLERANCE * usual)
    closest, odd = int(gaps.argmin()), int(np.abs(gaps - usual).argmax())
    if gaps[closest] < tolerance:
        raise ValueError(
            f"{source}: expected one slice in each place; found {_name(frames[closest])} and "
            f"{_name(frames[closest + 1])} in the same{_why_twice(frames[closest], frames[closest + 1])}"
        )
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    stray = np.abs(positions - positions[0] - np.arange(len(frames))[:, None] * step).max()
    if abs(gaps[odd] - usual) > tolerance or stray > tolerance:
        raise ValueError(
            f"{source}: expected slices {usual:.3f} mm apart; found {gaps[odd]:.3f} mm between {_name(frames[odd])} "
            f"and {_name(frames[odd + 1])}. A slice is missing, or the series is not one volume: fetch it again."
        )
    if np.linalg.norm(step - (step @ normal) * normal) > tolerance:
        raise ValueError(
            f"{source}: expected slices stacked along their normal; found a sheared grid (tilted gantry). "
            "Resample the series to a rectangular grid first."
        )
    return step


def _why_twice(one: Frame, other: Frame) -> str:
    """The rest of a message on two slices in one place: what they are, and what to do."""
    a, b = one.dataset, other.dataset
    if one.file != other.file and a.get("SOPInstanceUID") == b.get("SOPInstanceUID") is not None:
        return ": one is a copy of the other, with its SOP Instance UID. Remove the copy."
    differing = [k for k in DISTINCTIVE if a.get(k) != b.get(k)]
    if one.file != other.file and not differing:
        return (
            ", with no echo, time or direction that tells them apart: the series seems to be here twice. Remove one of "
            "the two, or give each a folder of its own."
        )
    said = "".join(f"; {k} is {a.get(k)} and {b.get(k)}" for k in differing[:1])
    return (
        f"{said}. A series with several echoes, directions or time points must be divided: give each volume a folder "
        "of its own."
    )


def _name(frame: Frame) -> str:
    return frame.file.name + (f" frame {frame.number}" if "PerFrameFunctionalGroupsSequence" in frame.dataset else "")


def _fill(values: np.ndarray, file: Path, slices: Sequence[tuple[int, Frame]]) -> None:
    """Read the ``slices`` (index in the volume, frame) of one file."""
    import itk  # takes seconds to load: only where DICOM is read

    try:
        io = itk.GDCMImageIO.New()
        reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=str(file), ImageIO=io)
        reader.Update()
        pixels = itk.array_view_from_image(reader.GetOutput())
    except Exception as error:
        raise ValueError(unreadable(file, f"{type(error).__name__} while its pixels were decoded")) from error
    slope, intercept = io.GetRescaleSlope() or 1.0, io.GetRescaleIntercept()
    for index, frame in slices:
        if frame.number >= len(pixels) or pixels[frame.number].T.shape != values.shape[:2]:
            raise ValueError(unreadable(file, f"pixels of shape {pixels.shape}"))
        plane = pixels[frame.number].T
        if (frame.slope, frame.intercept) != (slope, intercept):  # ITK takes those of the first frame for all
            plane = (plane.astype(np.float64) - intercept) / slope * frame.slope + frame.intercept
        values[..., index] = plane
