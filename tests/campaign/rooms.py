"""What the kinds of bad input are made of: a healthy small data set, and a folder of its own for each kind."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from resume import CONFIGS, OF_STAGE, TINY

from custom.data.datalist import write_datalist
from custom.data.phantom import write_dataset

__all__ = ["MODALITIES", "Base", "Room"]

MODALITIES = ("t1", "t1ce", "t2", "flair")


class Base:
    """Healthy inputs that nobody changes: phantoms of 4 mm with a datalist, a DICOM series, tiny weights.

    Args:
        folder: to make them in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.phantoms = folder / "phantoms"
        subjects = [path.name for path in sorted(write_dataset(self.phantoms, 4, 7, spacing=4.0))]
        self.subjects = subjects
        entries = [
            {"subject": s, **{m: str(self.phantoms / s / f"{s}_{m}.nii.gz") for m in (*MODALITIES, "seg")}}
            for s in subjects
        ]
        split = {"training": entries[:2], "validation": entries[2:3], "test": entries[3:]}
        self.data = folder / "data"
        write_datalist(self.data / "datalist.json", split, MODALITIES)
        self.scan = Path(entries[0]["t1"])
        self.entries = entries

    @cached_property
    def slices(self) -> list[Dataset]:
        """A series of the scan."""
        volume = nib.load(self.scan)
        values = np.asarray(volume.dataobj)
        header = Dataset()
        header.SOPClassUID, header.Modality, header.ImageType = MRImageStorage, "MR", ["ORIGINAL", "PRIMARY", "M"]
        header.PatientName, header.PatientID = "Doe^Jo", "P1"
        header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
        header.FrameOfReferenceUID, header.SeriesNumber, header.SeriesDescription = generate_uid(), 7, "t1"
        header.Columns, header.Rows = values.shape[:2]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.PixelSpacing, header.SliceThickness = [4.0, 4.0], 4.0
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        found = []
        for index in range(values.shape[2]):
            one = copy.deepcopy(header)
            one.SOPInstanceUID, one.InstanceNumber = generate_uid(), index + 1
            one.ImagePositionPatient = [0, 0, 4.0 * index]
            one.PixelData = np.ascontiguousarray(values[..., index].T).astype("<u2").tobytes()
            found.append(one)
        return found

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The bundle's own."""
        return torch.load(CONFIGS.parent / "models" / "model.pt", map_location="cpu", weights_only=True)


class Room:
    """A folder for one kind; whatever it makes before its command runs is no result of the command.

    Attributes:
        base: healthy inputs.
        folder: the working directory of the command.
        out: the output folder that it is given.
    """

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.folder, self.out = base, folder, folder / "out"
        folder.mkdir(parents=True)

    # inputs

    def values(self) -> np.ndarray:
        """The healthy scan, float32 (H, W, D)."""
        return np.asarray(nib.load(self.base.scan).dataobj).astype(np.float32)

    def save(self, values: np.ndarray, name: str = "scan.nii.gz", affine: np.ndarray | None = None) -> Path:
        """A NIfTI file of ``values``."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, nib.load(self.base.scan).affine if affine is None else affine), path)
        return path

    def write(self, name: str, content: bytes | str | Any) -> Path:
        """A file of bytes, text, or JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
        return path

    def raw(self) -> bytearray:
        """The healthy scan's file, unpacked."""
        return bytearray(gzip.decompress(self.base.scan.read_bytes()))

    def series(self, change: Any = None, name: str = "series", keep: Any = None) -> Path:
        """A folder with the DICOM series; ``change(slice, index)`` may alter one, ``keep(index)`` leave one out."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, healthy in enumerate(self.base.slices):
            if keep is not None and not keep(index):
                continue
            one = copy.deepcopy(healthy)
            if change is not None:
                change(one, index)
            one.save_as(folder / f"i{index:03d}.dcm", enforce_file_format=True)
        return folder

    def datalist(self, change: Any, name: str = "data") -> Path:
        """A folder with a datalist that ``change(content)`` has altered, or replaced by what it returns."""
        content = json.loads((self.base.data / "datalist.json").read_text())
        content = change(content) or content
        self.write(f"{name}/datalist.json", content)
        return self.folder / name

    def weights(self, change: Any = None, name: str = "model.pt") -> Path:
        """The bundle's weights, as ``change(state)`` leaves or returns them."""
        state: Any = dict(self.base.weights)
        if change is not None:
            changed = change(state)
            state = state if changed is None else changed
        torch.save(state, self.folder / name)
        return self.folder / name

    def stage(self, config: str, change: Any = None) -> Path:
        """An output folder with a checkpoint of ``config`` that only looks like one; ``change(path)`` may damage it."""
        folder = self.out / {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}[config]
        folder.mkdir(parents=True)
        path = folder / "last.pt"
        torch.save({"epoch": 1}, path)
        if change is not None:
            change(path)
        return folder

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a file under another name."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(source, target))

    # commands

    def inference(self, image: object = None, **options: object) -> list[object]:
        """A translation by the bundle's weights."""
        given = {} if image is None else {"image": image}
        return self._bundle("inference", "inference", {"targets": "t2", **given, **options})

    def evaluating(self, **options: object) -> list[object]:
        """An evaluation of the bundle's weights."""
        return self._bundle("evaluating", "evaluate", {"dataset_dir": self.base.data, **options})

    def training(self, config: str = "train_autoencoder", **options: object) -> list[object]:
        """A training of a tiny network; a dash in a name stands for ``#``."""
        settings = {**TINY, **OF_STAGE[config], "max_epochs": 1, "dataset_dir": self.base.data, **options}
        return self._bundle("training", config, {k.replace("__", "#"): v for k, v in settings.items()})

    def custom(self, name: str, **options: object) -> list[object]:
        """``python -m custom NAME``."""
        return ["custom", name, *self._flags(options)]

    def _bundle(self, run: str, config: str, options: dict[str, object]) -> list[object]:
        settings = {"bundle_root": CONFIGS.parent, "output_dir": self.out, "device": "cpu", **options}
        files = ["--config_file", settings.pop("config_file", CONFIGS / f"{config}.json")]
        files += ["--logging_file", CONFIGS / "logging.conf"]
        return ["monai.bundle", "run", run, *files, *self._flags(settings)]

    @staticmethod
    def _flags(options: dict[str, object]) -> list[object]:
        return [part for key, value in options.items() if value is not None for part in (f"--{key}", value)]
