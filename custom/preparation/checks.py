"""Check one file of a data set: its content and faults, from one reading.

Reading a compressed volume is most of the time that a check of a data set takes. So a NIfTI file is decompressed in one
piece and looked at in place, in its own numbers: no copy in another type is made. What needs more than the extremes is
computed on a coarser grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch

from custom.data.damage import DamagedFileError
from custom.data.dicom_files import is_dicom
from custom.data.foreground import foreground, solid
from custom.data.intensities import has_wrapped
from custom.data.nifti import is_nifti, lacks_orientation, load_numbers
from custom.data.readers import ASSUMED_KEY, read_volume
from custom.data.scans import labels_in, listed
from custom.utils.errors import user_message

__all__ = ["PATTERN_GRID", "Checked", "check_file"]

PATTERN_GRID = (12, 14, 12)  # cells of the box around the head, left-right, back-front, bottom-top
STEP_MM = 3.0
PICTURE_PIXELS = 112
MIN_VOXELS = 16  # one cell of the networks' coarsest feature map
SPACING_MM = (0.1, 10.0)
FIELD_MM = (50.0, 500.0)
RANGE = (0.005, 0.995)
LEVELS = 256  # of intensity, to rank voxels by
BLOCK = 1 << 17  # voxels that a processor's cache holds


class Checked(NamedTuple):
    """Content and faults of one file. Axes are left-right, back-front, bottom-top, whatever the file's order.

    Attributes:
        path: of the file, or of the folder of a DICOM series.
        fault: code of the problem and what was found; None for a file that can be used. What comes after ``fault`` is
            known as far as the file could be read.
        remarks: codes of lesser problems and what was found.
        shape: voxels.
        spacing: voxel size in mm.
        affine: (4, 4), voxel to world in mm.
        dtype: of the file's numbers.
        extremes: lowest and highest intensity.
        usual: percentiles 0.5 and 99.5 of the foreground.
        head: voxels of the box around the foreground, to a few voxels.
        digest: the same for the same content, whatever the file's type, header and compression.
        pattern: mean rank of the intensity, 0 to 1, in the cells of ``PATTERN_GRID``; NaN outside of the head.
        picture: (X, Y) uint8, the axial slice through the middle of the head, and its size in mm.
    """

    path: str
    fault: tuple[str, str] | None
    remarks: tuple[tuple[str, str], ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    affine: np.ndarray | None = None
    dtype: str = ""
    extremes: tuple[float, float] = (0.0, 0.0)
    usual: tuple[float, float] = (0.0, 0.0)
    head: tuple[int, ...] = ()
    digest: str = ""
    pattern: np.ndarray | None = None
    picture: np.ndarray | None = None
    picture_mm: tuple[float, float] = (0.0, 0.0)


class _Fault(Exception):
    """A problem of the file: its code and what was found."""


class _Stored(NamedTuple):
    """Numbers as they are stored, in the file's order of axes; intensity = slope · number + inter."""

    numbers: np.ndarray
    slope: float
    inter: float
    affine: np.ndarray
    has_orientation: bool


def check_file(path: str | Path, *, label: bool = False) -> Checked:
    """Read one file and check that it can be trained with; nothing that is wrong with it raises an error.

    Args:
        path: NIfTI, NRRD, MetaImage, or a DICOM series' folder or file.
        label: it is a segmentation, which may be constant and whose values are classes.
    """
    known: dict = {}
    try:
        _examine(_read(Path(path)), known, label)
        fault = None
    except _Fault as problem:
        fault = problem.args
    except DamagedFileError as error:
        fault = ("truncated", str(error))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a broken file provokes concerns this file alone
        code = "dicom" if Path(path).is_dir() or is_dicom(path) else "unreadable"
        fault = (code, user_message(error, default="an error"))
    if fault is not None:  # the file is named by whoever shows the fault
        fault = (fault[0], fault[1].removeprefix(f"{path}: "))
    return Checked(str(path), fault, **known)


def _examine(stored: _Stored, known: dict, label: bool) -> None:
    """Fill ``known`` step by step, so that a fault keeps what was known before it."""
    numbers = _one_volume(stored.numbers)
    known.update(dtype=str(numbers.dtype), affine=_in_ras(stored.affine, numbers.shape))
    volume, spacing = _to_ras(numbers, stored.affine)
    known.update(shape=volume.shape, spacing=spacing)
    known["remarks"] = _check_geometry(volume.shape, spacing, stored.has_orientation)
    known["extremes"] = _check_values(numbers, stored, label)
    step = [max(1, round(STEP_MM / s)) for s in spacing]
    coarse = np.array(volume[tuple(slice(None, None, n) for n in step)], dtype=np.float32, order="K")
    if (stored.slope, stored.inter) != (1.0, 0.0):
        coarse = coarse * np.float32(stored.slope) + np.float32(stored.inter)
    known["digest"] = _digest(coarse, volume.shape)
    if label:
        return
    _check_mask(coarse, volume)
    if has_wrapped(coarse) and has_wrapped(volume.astype(np.float32)):
        raise _Fault("overflowed", f"jumps between {coarse.min():g} and {coarse.max():g} within tissue")
    mask = foreground(torch.from_numpy(np.ascontiguousarray(coarse))).numpy()
    if not mask.any():
        raise _Fault("constant", "no foreground: all is background")
    box = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    known["head"] = tuple(
        min(int((b[-1] - b[0] + 1) * n), size) for b, n, size in zip(box, step, volume.shape, strict=True)
    )
    values = coarse[mask]
    low, high = (float(v) for v in np.sort(values)[[int(share * (len(values) - 1)) for share in RANGE]])
    known["usual"] = (low, high)
    known["pattern"] = _pattern(_ranks(values, low, high), mask, box)
    height = (box[2][0] + box[2][-1]) // 2 * step[2]
    known["picture"], known["picture_mm"] = _picture(volume[:, :, height], spacing, stored, low, high)


def _read(path: Path) -> _Stored:
    if not path.is_file() or not is_nifti(path):
        volume = read_volume(path)
        values = volume.as_tensor().numpy()
        stated = ASSUMED_KEY not in volume.meta
        return _Stored(values[0] if values.shape[0] == 1 else values, 1.0, 0.0, np.asarray(volume.affine), stated)
    header, numbers, slope, inter = load_numbers(path)
    return _Stored(numbers, slope, inter, header.affine, not lacks_orientation(header))


def _one_volume(numbers: np.ndarray) -> np.ndarray:
    while numbers.ndim > 3 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    if numbers.dtype.kind not in "iufb":
        raise _Fault("not_3d", f"numbers of type {numbers.dtype}, such as colours; expected one intensity a voxel")
    if numbers.ndim != 3:
        raise _Fault("not_3d", f"{numbers.ndim}D, {_times(numbers.shape)} voxels")
    return numbers


def _to_ras(numbers: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """View of the volume with its axes nearest to left-right, back-front, bottom-top, and the voxel size along them."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _Fault("spacing", f"the header's affine cannot be inverted: {np.round(affine[:3], 3).tolist()}")
    to_ras = nib.io_orientation(affine)
    axes = [int(np.flatnonzero(to_ras[:, 0] == axis)[0]) for axis in range(3)]
    size = np.linalg.norm(affine[:3, :3], axis=0)
    view = numbers.transpose(axes)[tuple(slice(None, None, int(to_ras[a, 1])) for a in axes)]
    return view, tuple(float(size[a]) for a in axes)


def _in_ras(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Affine of the volume that :func:`_to_ras` gives, the same for grids that differ in the order of axes only."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return affine
    return affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(affine), shape)


def _check_geometry(
    shape: tuple[int, ...], spacing: tuple[float, ...], has_orientation: bool
) -> tuple[tuple[str, str], ...]:
    if min(shape) < MIN_VOXELS:
        raise _Fault("too_small", f"{_times(shape)} voxels; expected at least {MIN_VOXELS} along each axis")
    if not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise _Fault("spacing", f"{_millimetres(spacing)}; expected {SPACING_MM[0]} to {SPACING_MM[1]:g} mm")
    field = [n * s for n, s in zip(shape, spacing, strict=True)]
    remarks = []
    if not all(FIELD_MM[0] <= f <= FIELD_MM[1] for f in field):
        remarks.append(("field_of_view", f"{_times(round(f) for f in field)} mm"))
    if not has_orientation:
        remarks.append(("orientation", "neither sform nor qform is set"))
    return tuple(remarks)


def _check_values(numbers: np.ndarray, stored: _Stored, label: bool) -> tuple[float, float]:
    """Lowest and highest intensity; a NaN or an infinite voxel shows in them, so no mask of all voxels is made."""
    flat = numbers.ravel(order="K")
    parts = [flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK)]
    with np.errstate(invalid="ignore"):
        ends = np.array([(part.min(), part.max()) for part in parts], dtype=np.float64)
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not np.isfinite([low, high]).all():
        low, high = _check_finite(numbers, label)
    low, high = sorted((stored.slope * low + stored.inter, stored.slope * high + stored.inter))
    if low == high and not label:
        raise _Fault("constant", "all voxels are 0" if low == 0 else f"all voxels are {low:g}")
    return low, high


def _check_finite(numbers: np.ndarray, label: bool) -> tuple[float, float]:
    """Ends of the finite values, where the others are an image's background: outside the brain."""
    finite = np.isfinite(numbers)
    faulty = ~finite
    if finite.any() and not label:
        brain = foreground(torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)))
        faulty &= solid(brain[None])[0].numpy()
    if faulty.any():
        raise _Fault("not_finite", f"{int(faulty.sum())} of {finite.size} voxels")
    return float(numbers[finite].min()), float(numbers[finite].max())


def _check_mask(coarse: np.ndarray, volume: np.ndarray) -> None:
    """Labels are no image; the coarse grid decides for nearly all, so the whole volume is rarely searched."""
    if labels_in(torch.from_numpy(coarse)) is not None:
        values = labels_in(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
        if values is not None:
            raise _Fault("mask", f"only the stored values {listed(values)}")


def _digest(coarse: np.ndarray, shape: tuple[int, ...]) -> str:
    return hashlib.blake2b(
        np.ascontiguousarray(coarse.T).data, digest_size=16, person=_times(shape).encode()[:16]
    ).hexdigest()


def _ranks(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share (N,) of the voxels that are darker than each."""
    level = np.clip((values - low) * ((LEVELS - 1) / max(high - low, 1e-12)), 0, LEVELS - 1).astype(np.uint8)
    count = np.bincount(level, minlength=LEVELS)
    return ((np.cumsum(count) - 0.5 * count) / len(values))[level]


def _pattern(ranks: np.ndarray, mask: np.ndarray, box: list[np.ndarray]) -> np.ndarray:
    """Mean rank in each cell: it does not depend on the scanner's scale, and little on the head's size and place."""
    cells = [np.zeros(n, np.int32) for n in mask.shape]
    for cell, inside, number in zip(cells, box, PATTERN_GRID, strict=True):
        start, stop = inside[0], inside[-1] + 1
        cell[start:stop] = np.arange(stop - start) * number // (stop - start)
    x, y, z = cells
    _, ny, nz = PATTERN_GRID
    index = ((x[:, None, None] * ny + y[:, None]) * nz + z)[mask]
    count = np.bincount(index, minlength=np.prod(PATTERN_GRID))
    total = np.bincount(index, weights=ranks, minlength=np.prod(PATTERN_GRID))
    few = max(1, int(0.2 * np.median(count[count > 0])))
    return np.where(count >= few, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _picture(
    plane: np.ndarray, spacing: tuple[float, ...], stored: _Stored, low: float, high: float
) -> tuple[np.ndarray, tuple[float, float]]:
    """Slice (X, Y) as 8 bits, the usual range from black to white, and its size in mm."""
    size = tuple(n * s for n, s in zip(plane.shape, spacing[:2], strict=True))
    step = tuple(slice(None, None, max(1, round(max(size) / PICTURE_PIXELS / s))) for s in spacing[:2])
    values = plane[step].astype(np.float32) * np.float32(stored.slope) + np.float32(stored.inter)
    black = min(low, 0.0)  # of a brain in air, the air
    grey = np.nan_to_num(values - black, nan=0.0, posinf=0.0, neginf=0.0) * (255 / max(high - black, 1e-12))
    return np.clip(grey, 0, 255).astype(np.uint8), size


def _times(shape: Iterable[int]) -> str:
    return "×".join(str(n) for n in shape)


def _millimetres(spacing: tuple[float, ...]) -> str:
    return "×".join(f"{s:.3g}" for s in spacing) + " mm"
