"""Fixtures shared by all tests: small volumes, data sets and networks made on the spot."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from custom.inference.dicom_writer import write_dicom
from custom.networks import VQGAN, ConditionalUNet, LatentTranslator, NoiseSchedule, StyleTransfer
from custom.utils.modalities import BRATS_MODALITIES

PLUGINS = (
    "artifact",
    "brains",
    "elsewhere",
    "foreign",
    "locales",
    "near",
    "network",
    "order",
    "segmenter",
    "skips",
    "toy",
    "translation",
)
pytest_plugins = tuple(f"tests.fixtures.{name}" for name in PLUGINS)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
RAS = np.diag([2.0, 2.0, 2.0, 1.0])


def make_head(shape: tuple[int, int, int] = (30, 34, 26), seed: int = 0) -> np.ndarray:
    """A skull-stripped "head": an ellipsoid of textured positive values on an exactly zero background, float32."""
    grid = np.meshgrid(*(np.linspace(-1.25, 1.25, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 1
    texture = np.random.default_rng(seed).uniform(100, 900, shape)
    return np.where(inside, texture, 0).astype(np.float32)


@pytest.fixture
def head() -> Callable[..., np.ndarray]:
    """See :func:`make_head`."""
    return make_head


class HTTPException(Exception):
    """As FastAPI's: the only one whose text the server of MONAI Label sends to its client."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(status_code, detail)
        self.status_code, self.detail = status_code, detail


@pytest.fixture
def label_server(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Makes this process pass for the server of MONAI Label; the exception that such a server answers with."""
    monkeypatch.setitem(sys.modules, "monailabel.app", ModuleType("monailabel.app"))
    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(HTTPException=HTTPException))
    return HTTPException


@pytest.fixture
def check_shapes() -> Callable[[LatentTranslator], None]:
    """``check_shapes(translator)``: each part of a translator on the meta device takes what the one before it gives."""

    def check(translator: LatentTranslator) -> None:
        image = torch.empty(2, 1, *(translator.spatial_divisor,) * 3, device="meta")
        target = torch.zeros(2, dtype=torch.long, device="meta")
        latent = translator.encode(image)
        target_like = translator.transfer(latent, target)
        prediction = translator.predict(latent, latent, target_like, target, target)
        assert prediction.shape == target_like.shape == latent.shape
        assert translator.decode(prediction).shape == image.shape

    return check


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real scans are not here: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def write_volume(tmp_path: Path) -> Callable[..., Path]:
    """``write_volume(name, data=make_head(), affine=RAS, qform=1, sform=1)`` → path of a NIfTI file."""

    def write(
        name: str, data: np.ndarray | None = None, affine: np.ndarray = RAS, *, qform: int = 1, sform: int = 1
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(make_head() if data is None else data, affine)
        image.set_qform(affine, qform)
        image.set_sform(affine, sform)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def brats_folder(tmp_path: Path) -> Callable[..., Path]:
    """``brats_folder({"a": ("t1", "t2")}, name="brats")`` → folder in the BraTS 2021 layout, small volumes."""

    def make(subjects: dict[str, tuple[str, ...]], name: str = "brats") -> Path:
        root = tmp_path / name
        root.mkdir()
        for number, (subject, suffixes) in enumerate(subjects.items()):
            (root / subject).mkdir()
            for position, suffix in enumerate(suffixes):
                image = nib.Nifti1Image(make_head(seed=10 * number + position), RAS)
                nib.save(image, root / subject / f"{subject}_{suffix}.nii.gz")
        return root

    return make


def _slice_header(shape: tuple[int, ...], sop_class: str) -> Dataset:
    """What all slices of a made series share; ``shape`` is (columns, rows, slices)."""
    header = Dataset()
    header.SOPClassUID, header.Modality, header.ImageType = sop_class, "MR", ["ORIGINAL", "PRIMARY", "M"]
    header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = "Doe^Jo", "P1", "19700101", "O"
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID, header.StudyDate, header.StudyTime = generate_uid(), "20200102", "030405"
    header.SeriesNumber, header.SeriesDescription, header.Manufacturer = 7, "t1 sag", "ACME"
    header.ScanningSequence, header.SequenceVariant, header.EchoTime = "GR", "SP", 3.5
    header.Columns, header.Rows = shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header


def _decimals(values: np.ndarray) -> list[DSfloat]:
    return [DSfloat(float(v), auto_format=True) for v in np.ravel(values)]


def _plane(affine: np.ndarray, index: int) -> dict[str, list[DSfloat]]:
    """Attributes that place slice ``index`` of a volume whose ``affine`` (voxel → mm) is RAS."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    return {
        "ImageOrientationPatient": _decimals((lps[:3, :2] / spacing).T),
        "ImagePositionPatient": _decimals((lps @ [0, 0, index, 1])[:3]),
        "PixelSpacing": _decimals(spacing[::-1]),
    }


def _dicom_pixels(plane: np.ndarray) -> bytes:
    return np.ascontiguousarray(plane.T).astype("<u2").tobytes()


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., Path]:
    """``write_series(name, data=make_head(), affine=RAS, edit=None)`` → folder with one file a slice.

    The order of the names is not that of the slices. ``edit(dataset, index)`` may change a slice.
    """

    def write(
        name: str,
        data: np.ndarray | None = None,
        affine: np.ndarray = RAS,
        edit: Callable[[Dataset, int], None] | None = None,
    ) -> Path:
        volume = make_head() if data is None else data
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        header = _slice_header(volume.shape, MRImageStorage)
        for index in range(volume.shape[2]):
            dataset = copy.deepcopy(header)
            dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), index + 1
            for keyword, value in _plane(affine, index).items():
                setattr(dataset, keyword, value)
            dataset.PixelData = _dicom_pixels(volume[..., index])
            if edit is not None:
                edit(dataset, index)
            write_dicom(folder / f"{(7 * index) % 97:03d}_{index}.dcm", dataset)
        return folder

    return write


@pytest.fixture
def write_enhanced(tmp_path: Path) -> Callable[..., Path]:
    """``write_enhanced(name, data=make_head(), affine=RAS, slopes=None, order=None)`` → a multi-frame MR file.

    ``order`` lists the slices as the frames hold them; ``slopes`` are the rescale slopes of the slices.
    """

    def write(
        name: str,
        data: np.ndarray | None = None,
        affine: np.ndarray = RAS,
        slopes: Sequence[float] | None = None,
        order: Sequence[int] | None = None,
    ) -> Path:
        volume = make_head() if data is None else data
        dataset = _slice_header(volume.shape, EnhancedMRImageStorage)
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), 1
        frames = list(range(volume.shape[2])) if order is None else list(order)
        dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = len(frames), []
        for index in frames:
            plane = _plane(affine, index)
            slope = 1.0 if slopes is None else slopes[index]
            macros = {
                "PlaneOrientationSequence": {"ImageOrientationPatient": plane["ImageOrientationPatient"]},
                "PlanePositionSequence": {"ImagePositionPatient": plane["ImagePositionPatient"]},
                "PixelValueTransformationSequence": {
                    "RescaleIntercept": 0, "RescaleSlope": slope, "RescaleType": "US"
                },
            }  # fmt: skip
            dataset.PerFrameFunctionalGroupsSequence.append(_groups(macros))
        measures = {"PixelSpacing": plane["PixelSpacing"], "SliceThickness": 1}
        dataset.SharedFunctionalGroupsSequence = [_groups({"PixelMeasuresSequence": measures})]
        dataset.PixelData = b"".join(_dicom_pixels(volume[..., index]) for index in frames)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, dataset)
        return path

    return write


def _groups(macros: dict[str, dict[str, object]]) -> Dataset:
    groups = Dataset()
    for macro, attributes in macros.items():
        item = Dataset()
        for keyword, value in attributes.items():
            setattr(item, keyword, value)
        setattr(groups, macro, [item])
    return groups


def make_tiny_translator(num_modalities: int = len(BRATS_MODALITIES)) -> LatentTranslator:
    """A ``LatentTranslator`` of a few thousand parameters with the small preset's structure, untrained."""
    torch.manual_seed(0)
    latent_channels = 4
    return LatentTranslator(
        num_modalities,
        VQGAN([8, 8], latent_channels, 32, num_res_blocks=[1, 1], norm_num_groups=4, haar_levels=1),
        StyleTransfer(
            num_modalities, latent_channels, in_channels=8, res_channels=[8], spade_channels=[8], hidden_channels=4
        ),
        ConditionalUNet(
            2 * latent_channels,
            latent_channels,
            num_modalities,
            channels=[8, 8, 8],
            attention_levels=[False, False, True],
            num_heads=2,
            norm_num_groups=4,
        ),
        NoiseSchedule(),
        num_inference_steps=2,
    ).eval()


@pytest.fixture(scope="session")
def first_tiny_translator() -> LatentTranslator:
    return make_tiny_translator()


@pytest.fixture
def tiny_translator(first_tiny_translator: LatentTranslator) -> LatentTranslator:
    """See :func:`make_tiny_translator`; a copy of each test's own."""
    return copy.deepcopy(first_tiny_translator)
