"""Scans with axes that lie in different ways, made of a phantom: nobody needs data to run the clients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from custom.inference.dicom_writer import write_dicom

__all__ = ["Scans", "make_bad_scans", "make_scans", "make_second_contrast"]

TILT = np.deg2rad(12)  # of the slices against the axes of the body


class Scans(NamedTuple):
    """One head in three files.

    Attributes:
        las: NIfTI, left, anterior, superior, axial-oblique.
        lps: NIfTI, left, posterior, superior.
        dicom: folder of an oblique DICOM series.
    """

    las: Path
    lps: Path
    dicom: Path


def make_scans(phantom: Path, folder: Path) -> Scans:
    """Write the scans of a phantom (its T1) to ``folder``. Values are never resampled, only the axes are turned."""
    image = nib.load(phantom)
    values = np.asarray(image.dataobj).astype(np.float32)
    las = _oriented(values, image.affine, "LAS", tilt_axis=0)
    lps = _oriented(values, image.affine, "LPS")
    sagittal = _oriented(values, image.affine, "PSR", tilt_axis=2)
    paths = Scans(folder / "las.nii.gz", folder / "lps.nii.gz", folder / "series")
    nib.save(nib.Nifti1Image(*las), paths.las)
    nib.save(nib.Nifti1Image(*lps), paths.lps)
    write_series(paths.dicom, *sagittal)
    return paths


def make_second_contrast(scan: Path, path: Path) -> Path:
    """Write the brain of ``scan`` with dark and bright exchanged to ``path``."""
    image = nib.load(scan)
    values = image.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(np.where(values > 0, 1.2 * values.max() - values, 0), image.affine), path)
    return path


def make_bad_scans(scan: Path, folder: Path) -> None:
    """Write ``.nii.gz`` that are no scan: ``4d``, ``tiny``, ``mask``, ``binary``, ``nan``, ``truncated``, ``text``."""
    image = nib.load(scan)
    values = image.get_fdata(dtype=np.float32)
    spoilt = {
        "4d": np.stack([values, values], axis=-1),
        "tiny": values[:8],
        "mask": (values > 0).astype(np.float32),
        "binary": (values > 0).astype(np.float32),
        "nan": np.where(values > np.median(values[values > 0]), np.nan, values),
    }
    for name, content in spoilt.items():
        nib.save(nib.Nifti1Image(content, image.affine), folder / f"{name}.nii.gz")
    (folder / "truncated.nii.gz").write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    (folder / "text.nii.gz").write_text("no image\n")


def _oriented(
    values: np.ndarray, affine: np.ndarray, axes: str, tilt_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine with their axes in another order, the whole turned in the world around one of its axes."""
    change = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes)))
    turned = nib.orientations.apply_orientation(values, change)
    affine = affine @ nib.orientations.inv_ornt_aff(change, values.shape)
    if tilt_axis is not None:
        first, second = (axis for axis in range(3) if axis != tilt_axis)
        rotation = np.eye(4)
        rotation[first, first] = rotation[second, second] = np.cos(TILT)
        rotation[first, second], rotation[second, first] = -np.sin(TILT), np.sin(TILT)
        affine = rotation @ affine
    return np.ascontiguousarray(turned), affine


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as a DICOM series of MR images; ``affine`` is voxel to mm, RAS."""
    folder.mkdir()
    header = _header(values.shape)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    header.ImageOrientationPatient = _decimals((lps[:3, :2] / spacing).T)
    header.PixelSpacing = _decimals(spacing[::-1])
    for index in range(values.shape[2]):
        dataset = copy.deepcopy(header)
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), index + 1
        dataset.ImagePositionPatient = _decimals((lps @ [0, 0, index, 1])[:3])
        dataset.PixelData = np.ascontiguousarray(values[..., index].T).astype("<u2").tobytes()
        write_dicom(folder / f"{index:03d}.dcm", dataset)


def _header(shape: tuple[int, ...]) -> Dataset:
    """What all slices share; ``shape`` is (columns, rows, slices)."""
    header = Dataset()
    header.SOPClassUID, header.Modality, header.ImageType = MRImageStorage, "MR", ["ORIGINAL", "PRIMARY", "M"]
    header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = "Phantom", "P1", "", "O"
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID, header.StudyDate, header.StudyTime = generate_uid(), "20200102", "030405"
    header.SeriesNumber, header.SeriesDescription, header.Manufacturer = 7, "t1 sag", "none: a phantom"
    header.Columns, header.Rows = shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def _decimals(values: np.ndarray) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in np.ravel(values)]
