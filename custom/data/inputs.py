"""Files to translate: what a path or a folder means, and reading them so that one bad file does not stop the rest."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from custom.data.datalist import load_datalist
from custom.data.dicom import DICOM_SUFFIXES, dicom_files, is_multi_frame
from custom.data.dicom_writer import check_dicom_source
from custom.data.layouts import SEGMENTATION_KEY
from custom.data.readers import IMAGE_SUFFIXES
from custom.errors import user_message
from custom.modalities import BRATS_MODALITIES, canonical

__all__ = [
    "FAULT_KEY",
    "NAME_KEY",
    "OUTPUT_FORMATS",
    "PROVENANCE_KEY",
    "SYNTHETIC_SUFFIX",
    "TolerantDataset",
    "check_output_format",
    "image_stem",
    "image_suffix",
    "inference_inputs",
    "translation_name",
]

logger = logging.getLogger(__name__)

OUTPUT_FORMATS = ("nifti", "dicom")
SYNTHETIC_SUFFIX = "_synthetic"
FAULT_KEY = "fault"
PROVENANCE_KEY = "provenance"  # of the metadata of an image
NAME_KEY = "name"


def image_stem(path: str | os.PathLike) -> str:
    """Name of a file without the suffix of an image, or of a folder: ``"a/b.c.nii.gz"`` → ``"b.c"``."""
    name = Path(path).name
    return next((name[: -len(s)] for s in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES) if name.lower().endswith(s)), name)


def image_suffix(path: str | os.PathLike, default: str = ".nii.gz") -> str:
    """Suffix of an image file, ``"a/b.c.nrrd"`` → ``".nrrd"``; ``default`` for what translations are not written as."""
    name = Path(path).name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), default)


def translation_name(name: str, target: str) -> str:
    """Name, without a suffix, of the translation into ``target`` of the input called ``name``."""
    return f"{name}_{target}{SYNTHETIC_SUFFIX}"


def check_output_format(name: str) -> str:
    """``name`` in lower case, if translations can be written in that format."""
    if str(name).lower() not in OUTPUT_FORMATS:
        raise ValueError(f"output_format: expected {' or '.join(OUTPUT_FORMATS)}; found {name!r}. Choose one of them.")
    return str(name).lower()


def inference_inputs(
    image: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    *,
    dataset_dir: str | os.PathLike | None = None,
    phantom_dir: str | os.PathLike | None = None,
    modalities: Sequence[str] = BRATS_MODALITIES,
    output_format: str = "nifti",
) -> list[dict[str, str]]:
    """Files to translate.

    Args:
        image: a file, several, or a folder, which is searched with its subfolders for NIfTI, NRRD and MetaImage files,
            multi-frame DICOM files, and folders with the files of a DICOM series; segmentations and files that are
            translations already are passed over. Where it is not given, the first modality of the first held-out
            subject of ``dataset_dir`` is taken.
        dataset_dir: data set for the case that ``image`` is not given.
        phantom_dir: as in ``load_datalist``.
        modalities: the vocabulary.
        output_format: in which the translations will be written; ``dicom`` is refused for other sources.

    Returns:
        ``[{"image": path of a file or of a series' folder, "name": of its translations}, ...]``. The name is that of
        the file; where several in a searched folder share it, that of its subfolders too, ``"patient1_t1"``.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an empty folder, two files whose translations would have one name, no file at all, or a source
            that does not fit the ``output_format``.
    """
    if image is None:
        image = _held_out(dataset_dir, phantom_dir, modalities)
    named = list(image) if isinstance(image, list | tuple) else [image]
    if not named or not all(isinstance(path, str | os.PathLike) and os.fspath(path) for path in named):
        raise ValueError(f"image: expected a file, a list of files or a folder; found {image!r}. Name a file.")
    places = {file: place for path in named for file, place in _expand(Path(path).expanduser())}
    stems = Counter(map(image_stem, places))
    names: dict[str, Path] = {}
    for file, place in places.items():
        stem = image_stem(file)
        name = stem if stems[stem] == 1 else image_stem("_".join(place.parts))
        other = names.setdefault(name, file)
        if other != file:
            raise ValueError(
                f"{file}: expected files whose names differ, since translations are named after them; found {other} "
                "too. Rename one, or translate them into different folders."
            )
    if check_output_format(output_format) == "dicom":
        for file in names.values():
            check_dicom_source(file)
    return [{"image": str(file), NAME_KEY: name} for name, file in names.items()]


def _held_out(
    dataset_dir: str | os.PathLike | None, phantom_dir: str | os.PathLike | None, modalities: Sequence[str]
) -> str:
    if dataset_dir is None:
        raise ValueError("image: expected a file or a folder; found none. Add --image FILE.")
    entry = load_datalist(dataset_dir, "test", modalities, phantom_dir=phantom_dir)[0]
    file = next(entry[m] for m in map(canonical, modalities) if m in entry)
    logger.info("no image was given: translating the held-out %s", file)
    return file


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """Images at or under ``path``, each with its place relative to it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected an image or a folder; found nothing there. Correct the path.")
    if not path.is_dir():
        return [(path, Path(path.name))]
    folders = [path, *sorted(f for f in path.rglob("*") if f.is_dir())]
    files = [file for folder in folders for file in _images_in(folder)]
    kept = [f for f in files if not image_stem(f).endswith((SYNTHETIC_SUFFIX, f"_{SEGMENTATION_KEY}"))]
    if not kept:
        found = f"only {len(files)} segmentations and translations" if files else "none"
        raise ValueError(
            f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}, DICOM) in the folder; found {found}. "
            "Correct the path."
        )
    return [(file, Path(path.name) if file == path else file.relative_to(path)) for file in kept]


def _images_in(folder: Path) -> list[Path]:
    """Images that lie in a folder; the folder itself, if it holds the single slices of a DICOM series."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().endswith(IMAGE_SUFFIXES))
    dicom = dicom_files(folder)
    return files + (dicom if dicom and is_multi_frame(dicom[0]) else [folder] if dicom else [])


class TolerantDataset(Dataset):
    """A ``Dataset`` that hands on what is wrong with an item, ``{"fault": message}``, instead of raising.

    So a faulty file among many costs its own result alone; ``custom.engines.inference.FileEvaluator`` reports.

    Args:
        data: items ``{"image": path}``.
        transform: reads and prepares them.
        provenance: gives what is known of a source as text, which then is in the image's metadata.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[..., Any],
        provenance: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.provenance = provenance

    def _transform(self, index: int) -> Mapping[str, Any]:
        try:
            item = super()._transform(index)
            if self.provenance is not None:
                item["image"].meta[PROVENANCE_KEY] = self.provenance(self.data[index]["image"])
            return item
        except Exception as error:
            logger.debug("reading %s failed", self.data[index], exc_info=True)
            return {FAULT_KEY: user_message(error, default=str(self.data[index].get("image", self.data[index])))}
