"""Translations written back as DICOM: a new series of the same study, on the source's grid, declared as synthetic.

Every slice is an MR Image with ``ImageType`` DERIVED\\SECONDARY and ``SyntheticData`` YES. Patient, study and frame of
reference are the source's; what describes the acquisition (sequence, times, coil, contrast agent) is not, since nothing
was acquired.

Of several sources all that are DICOM are referred to; patient, study and the like are those of the one on whose grid
the translation lies.

Source: DICOM PS3.3 2024, A.4 (MR Image IOD), C.7.6.1 (general image), C.12.1 (SOP common), C.12.4 (common instance
reference); PS3.16, CID 7005 (purposes of contributing equipment), CID 7202 (purposes of source images).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.utils import convert_to_numpy
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from custom.data.dicom import DicomReader, DicomVolume, Frame, read_geometry
from custom.data.grids import same_grid
from custom.inference.inferer import METHOD
from custom.utils.files import atomic_folder

__all__ = ["MAXIMUM", "check_dicom_source", "save_synthetic_series", "write_dicom"]

PYDICOM_2 = int(pydicom.__version_info__[0]) == 2  # which MONAI Label is bound to
MAXIMUM = 4095  # stored value of an intensity of 1: twelve bits, as scanners store
SYNTHETIC_DATA = 0x0008001C  # pydicom 2 does not know its name
BITS = 12
LONG_STRING = 64  # characters of a LO
SHORT_TEXT = 1024  # characters of a ST
# the record as JSON, for programs; tools that take private elements away leave the contribution's description
PRIVATE_GROUP, PRIVATE_CREATOR, RECORD_ELEMENT = 0x0071, "BRAIN_MRI_MODALITY_TRANSLATION", 0x01
OWN_METHOD = "latent diffusion"
DESCRIBED = ("Seed", "Steps", "Samples", "WeightsSHA", "SourceSHA")

COPIED_GROUPS = (0x0010, 0x0012)  # patient; clinical trial and de-identification
COPIED = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "InstitutionName",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "AcquisitionNumber",
    "BodyPartExamined", "AnatomicRegionSequence", "Laterality", "PatientPosition", "SliceThickness",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "BurnedInAnnotation", "RecognizableVisualFeatures",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
EQUIPMENT = ("Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "SoftwareVersions")
# attributes that the standard wants to be there, with no value where it is not known
EMPTY_UNLESS_COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "PatientPosition", "PositionReferenceIndicator",
    "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength",
)  # fmt: skip

ACQUISITION_EQUIPMENT = ("109101", "DCM", "Acquisition Equipment")
MODIFYING_EQUIPMENT = ("109103", "DCM", "Modifying Equipment")
PROCESSED_IMAGE = ("121322", "DCM", "Source image for image processing operation")


def check_dicom_source(source: str | os.PathLike[str]) -> None:
    """Raise a ``ValueError`` where a translation of ``source`` cannot be written as DICOM."""
    if not DicomReader().verify_suffix(source):
        raise ValueError(
            f"{source}: expected a DICOM series, whose patient and study the output would keep; found another format. "
            "Leave out --output_format dicom, or name the folder of the series."
        )


def save_synthetic_series(
    volume: torch.Tensor,
    folder: Path,
    source: str | os.PathLike[str],
    record: Mapping[str, Any],
    *,
    others: Sequence[str | os.PathLike[str]] = (),
    number: int = 1,
) -> None:
    """Write one volume as a series of MR Images; the folder appears whole or not at all.

    Args:
        volume: (columns, rows, slices) in [0, 1] on the source's grid; stored as 0 to ``MAXIMUM``, without rescale, so
            that readers that apply one and readers that do not agree.
        folder: to write; one that an earlier run left is replaced.
        source: the DICOM folder or file that the volume was made from, or of several that on whose grid it lies.
        others: the rest of several sources; those that are DICOM are referred to as well.
        record: of ``custom.inference.provenance.translation_record``; it goes whole into a private element, and what
            names the program, its weights and its source into the contributing equipment.
        number: of the translation among those of the source; its SeriesNumber is the source's and 10000 times this.

    Raises:
        ValueError: for a source that is no DICOM, another shape, or a ``folder`` with other files in it.
    """
    check_dicom_source(source)
    geometry = read_geometry(source)
    values = np.asarray(convert_to_numpy(volume), dtype=np.float64)
    if values.shape != geometry.shape or not np.isfinite(values).all():
        raise ValueError(
            f"{source}: expected a translation of shape {geometry.shape}; found {values.shape}, "
            f"{int((~np.isfinite(values)).sum())} NaN or infinite. The postprocessing must invert the preprocessing."
        )
    if folder.exists() and any(file.suffix != ".dcm" for file in folder.iterdir()):
        raise ValueError(f"{folder}: expected no folder or an earlier translation; found other files. Move them away.")
    sources = _sources(geometry, [read_geometry(other) for other in others if DicomReader().verify_suffix(other)])
    stored = np.rint(np.clip(values, 0, 1) * MAXIMUM).astype("<u2")
    with pydicom.config.disable_value_validation():  # what the source holds is kept, even where it breaks rules
        series = _series(geometry, record)
        series.SeriesNumber = 10_000 * number + int(geometry.frames[0].dataset.get("SeriesNumber") or 0)
        with atomic_folder(folder) as temporary:
            for index, frames in enumerate(sources):
                instance = _instance(series, frames, index, stored[..., index])
                write_dicom(temporary / f"{index + 1:04d}.dcm", instance)


def write_dicom(path: str | os.PathLike[str], dataset: Dataset) -> None:
    """Write a complete DICOM file, explicit VR little endian, by pydicom 2 or 3."""
    if PYDICOM_2:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        pydicom.dcmwrite(path, dataset, write_like_original=False)
    else:
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def _series(geometry: DicomVolume, record: Mapping[str, Any]) -> Dataset:
    """Attributes that all slices share."""
    source = geometry.frames[0].dataset
    [program] = record["GeneratedBy"]
    bundle, version = program["Name"], f"v{program['Version']}" if program["Version"] else ""
    now = _now(source)
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    new = _kept(source)
    new.SOPClassUID = MRImageStorage
    new.Modality = "MR"
    new.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    new.SeriesInstanceUID = generate_uid(prefix=None)
    new.SeriesDate = new.ContentDate = new.InstanceCreationDate = date
    new.SeriesTime = new.ContentTime = new.InstanceCreationTime = time
    if "FrameOfReferenceUID" not in new:
        new.FrameOfReferenceUID = generate_uid(prefix=None)
    _declare_synthetic(new, source, record, f"{bundle} {version}".strip())
    new.Manufacturer, new.SoftwareVersions = bundle, version
    new.ManufacturerModelName = record.get(METHOD, OWN_METHOD)
    new.ContributingEquipmentSequence = [_acquisition(source), _modification(bundle, version, record, now)]
    block = new.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(RECORD_ELEMENT, "UT", json.dumps(record, sort_keys=True))
    new.ScanningSequence, new.SequenceVariant = "RM", "NONE"  # research mode: the term for what no scanner made
    for keyword in EMPTY_UNLESS_COPIED:
        if keyword not in new:
            setattr(new, keyword, None)
    _set_pixel_format(new, geometry)
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return new


def _now(source: Dataset) -> datetime:
    """Now, in the time zone that the source's times are in: one offset holds for all times of an object."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    if len(offset) != 5:
        return datetime.now()
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return datetime.now(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))


def _kept(source: Dataset) -> Dataset:
    new = Dataset()
    for element in source:
        if element.tag.group in COPIED_GROUPS or element.keyword in COPIED:
            new[element.tag] = copy.deepcopy(element)
    return new


def _declare_synthetic(new: Dataset, source: Dataset, record: Mapping[str, Any], origin: str) -> None:
    name, quantity = str(record["Target"]).upper(), record.get("Quantity")  # of an error map
    description = str(source.get("SeriesDescription") or "series")
    new.add_new(SYNTHETIC_DATA, "CS", "YES")
    new.ContentQualification = "RESEARCH"
    new.SeriesDescription = f"SYNTHETIC {name}{' UNCERTAINTY' if quantity else ''} from {description}"[:LONG_STRING]
    new.DerivationDescription = f"Synthetic {name} contrast, computed from the source images by {origin}"
    new.ImageComments = (
        f"SYNTHETIC {name}: computed by {origin} from another contrast, not acquired. It shows what is probable given "
        f"the source, not what is there. Not for diagnosis. Stored values 0 to {MAXIMUM} stand for intensities 0 to 1."
    )
    if quantity:
        new.DerivationDescription = f"{quantity} of the synthetic {name} contrast, computed by {origin}"
        new.ImageComments = (
            f"SYNTHETIC {name} UNCERTAINTY: {quantity} of the {name} that {origin} computed; no image of the patient. "
            f"Not for diagnosis. Stored values 0 to {MAXIMUM} stand for errors of 0 to 1 in intensity."
        )


def _acquisition(source: Dataset) -> Dataset:
    item = Dataset()
    for keyword in EQUIPMENT:
        if source.get(keyword):
            item[keyword] = copy.deepcopy(source[keyword])
    item.Manufacturer = item.get("Manufacturer") or "unknown"
    item.PurposeOfReferenceCodeSequence = [_code(*ACQUISITION_EQUIPMENT)]
    return item


def _modification(bundle: str, version: str, record: Mapping[str, Any], now: datetime) -> Dataset:
    item = Dataset()
    item.Manufacturer, item.SoftwareVersions = bundle, version
    item.ManufacturerModelName = record.get(METHOD, OWN_METHOD)
    item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S.%f")
    said = "; ".join(f"{name} {record[name]}" for name in DESCRIBED if record.get(name) is not None)
    doubts = " ".join(f"Warning: {warning}." for warning in record["Warnings"])
    item.ContributionDescription = (
        f"Translation of the source's contrast to {str(record['Target']).upper()}: synthetic content. {said}. {doubts}"
    ).strip()[:SHORT_TEXT]
    item.PurposeOfReferenceCodeSequence = [_code(*MODIFYING_EQUIPMENT)]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _set_pixel_format(new: Dataset, geometry: DicomVolume) -> None:
    first = geometry.frames[0]
    distance = float(np.linalg.norm(geometry.affine[:3, 2]))
    new.Columns, new.Rows = first.size
    new.PixelSpacing = _decimal(first.spacing[::-1])
    new.ImageOrientationPatient = _decimal(first.axes.ravel())
    new.SpacingBetweenSlices = DSfloat(distance, auto_format=True)
    new.SliceThickness = DSfloat(float(new.get("SliceThickness") or distance), auto_format=True)
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.BitsAllocated, new.BitsStored, new.HighBit, new.PixelRepresentation = 16, BITS, BITS - 1, 0
    new.WindowCenter, new.WindowWidth = (MAXIMUM + 1) // 2, MAXIMUM + 1
    new.RescaleIntercept, new.RescaleSlope, new.RescaleType = 0, 1, "US"


def _sources(geometry: DicomVolume, others: Sequence[DicomVolume]) -> list[list[Frame]]:
    """The source images of each slice, first that in whose place it lies.

    Of other sources on the same grid it is the image in that place, too; one on another grid was resampled, and all its
    images have part in each slice.
    """
    frames = [[frame] for frame in geometry.frames]
    for other in others:
        aligned = same_grid(geometry.shape, geometry.affine, other.shape, other.affine)
        for index, found in enumerate(frames):
            found.extend(other.frames[index : index + 1] if aligned else other.frames)
    return frames


def _instance(series: Dataset, sources: Sequence[Frame], index: int, plane: np.ndarray) -> Dataset:
    """One slice; ``plane`` is (columns, rows)."""
    new = copy.deepcopy(series)
    new.SOPInstanceUID = generate_uid(prefix=None)
    new.InstanceNumber = index + 1
    new.ImagePositionPatient = _decimal(sources[0].position)
    _refer(new, sources)
    new.PixelData = np.ascontiguousarray(plane.T).tobytes()
    new["PixelData"].VR = "OW"
    return new


def _refer(new: Dataset, sources: Sequence[Frame]) -> None:
    """Name the source images, each with its purpose, and once more by series, those of other studies apart."""
    instances: dict[str, list[Frame]] = {}
    for frame in sources:
        instances.setdefault(str(frame.dataset.SOPInstanceUID), []).append(frame)
    studies: dict[str, dict[str, list[Dataset]]] = {str(new.get("StudyInstanceUID")): {}}
    new.SourceImageSequence = []
    for frames in instances.values():
        header, reference = frames[0].dataset, Dataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if len(frames) < int(header.get("NumberOfFrames") or 1):
            reference.ReferencedFrameNumber = [frame.number + 1 for frame in frames]
        of_study = studies.setdefault(str(header.get("StudyInstanceUID")), {})
        of_study.setdefault(str(header.SeriesInstanceUID), []).append(copy.deepcopy(reference))
        reference.PurposeOfReferenceCodeSequence = [_code(*PROCESSED_IMAGE)]
        new.SourceImageSequence.append(reference)
    by_study = {uid: [_referenced_series(*one) for one in series.items()] for uid, series in studies.items()}
    new.ReferencedSeriesSequence = by_study.pop(str(new.get("StudyInstanceUID")))
    if by_study:
        new.StudiesContainingOtherReferencedInstancesSequence = []
    for uid, series in by_study.items():
        study = Dataset()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = uid, series
        new.StudiesContainingOtherReferencedInstancesSequence.append(study)


def _referenced_series(uid: str, references: list[Dataset]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = uid, references
    return series


def _decimal(numbers: np.ndarray) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]
