"""Files to translate: what a path or a folder means, and reading them so that one bad file does not stop the rest."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom.data.datalist import load_datalist
from custom.data.dicom_files import dicom_inputs
from custom.data.names import NAME_KEY, image_stem
from custom.data.readers import IMAGE_SUFFIXES
from custom.data.scans import LINK, SYNTHETIC, PassedOver, check_named_scan, is_synthetic, kinds, no_scan, walk
from custom.inference.dicom_writer import check_dicom_source
from custom.inference.sources import one_subject, subjects_in
from custom.utils.arguments import check_path
from custom.utils.distributed import is_main
from custom.utils.modalities import BRATS_MODALITIES, MISSING, canonical

__all__ = [
    "OUTPUT_FORMATS",
    "check_output_format",
    "inference_inputs",
]

logger = logging.getLogger(__name__)

OUTPUT_FORMATS = ("nifti", "dicom")


def check_output_format(name: str) -> str:
    """``name`` in lower case, if translations can be written in that format."""
    if str(name).lower() not in OUTPUT_FORMATS:
        raise ValueError(f"output_format: expected {' or '.join(OUTPUT_FORMATS)}; found {name!r}. Choose one of them.")
    return str(name).lower()


def inference_inputs(
    image: str | os.PathLike | list[str | os.PathLike] | None = None,
    *,
    dataset_dir: str | os.PathLike | None = None,
    phantom_dir: str | os.PathLike | None = None,
    modalities: Sequence[str] = BRATS_MODALITIES,
    targets: str | Sequence[str] | None = None,
    layout: str | None = None,
    pattern: str | None = None,
    output_format: str = "nifti",
) -> list[dict[str, Any]]:
    """Files to translate.

    Args:
        image: a file, or a folder, which is searched with its subfolders for NIfTI, NRRD and MetaImage files,
            multi-frame DICOM files, and folders with the files of a DICOM series; what is no scan or a translation
            already is passed over, see ``custom.data.scans``, and it is said. A list names the sources of one subject,
            which are translated together. Where it is not given, the first modality of the first held-out subject of
            ``dataset_dir`` is taken.
        dataset_dir: data set for the case that ``image`` is not given.
        phantom_dir: as in ``load_datalist``.
        modalities: the vocabulary.
        targets: contrasts that are asked for, to be compared with those of the sources; ``missing`` for those that a
            subject lacks.
        layout: ``image`` is a folder of subjects in this layout: all contrasts of each are its sources.
        pattern: of the layout ``plain``.
        output_format: in which the translations will be written; ``dicom`` is refused for other sources.

    Returns:
        ``[{"image": path of a file or of a series' folder, "name": of its translations}, ...]``. The name is that of
        the file; where several in a searched folder share it, that of its subfolders too, ``"patient1_t1"``. Of the
        sources of a subject ``"image"`` is a list, the name that of the subject, and ``"targets"``, where they are its
        own, holds them with commas.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an empty folder, two files whose translations would have one name, no file at all, a source
            that does not fit the ``output_format``, or sources that cannot be one subject's.
    """
    if image is not None:
        check_path("image", image)
    if layout is None and pattern is not None:
        raise ValueError(f"pattern: expected --layout plain beside it; found {pattern!r} alone. Add --layout plain.")
    if layout is not None:
        items = _of_layout(image, layout, targets, modalities, pattern)
    elif isinstance(image, list | tuple):
        if not image:
            raise ValueError("image: expected a file, a list of files or a folder; found none. Name a file.")
        items = [one_subject([_one_scan(Path(path).expanduser()) for path in image], modalities, targets)]
    elif targets == MISSING:
        raise ValueError(
            f"targets: expected contrasts; found {MISSING}, which is for subjects whose contrasts are known: a folder "
            "with --layout, or a list of files. Name the targets."
        )
    else:
        items = _by_themselves(_held_out(dataset_dir, phantom_dir, modalities) if image is None else Path(image))
    if check_output_format(output_format) == "dicom":
        for item in items:
            for file in [item["image"]] if isinstance(item["image"], str) else item["image"]:
                check_dicom_source(file)
    return items


def _of_layout(
    image: Any, layout: str, targets: str | Sequence[str] | None, modalities: Sequence[str], pattern: str | None
) -> list[dict[str, Any]]:
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"image: expected the folder of the subjects beside --layout {layout}; found {image!r}. Add --image FOLDER."
        )
    return subjects_in(image, layout, MISSING if targets is None else targets, modalities, pattern=pattern)


def _one_scan(path: Path) -> Path:
    found = _expand(path)
    if len(found) != 1:
        raise ValueError(
            f"{path}: expected one scan, as a list names the sources of one subject; found a folder with {len(found)}. "
            "Name the scans, or give the folder alone: every scan in it by itself, or with --layout subject by subject."
        )
    return found[0][0]


def _by_themselves(image: str | os.PathLike) -> list[dict[str, Any]]:
    """Each scan at or under a path is a source by itself."""
    places = dict(_expand(Path(image).expanduser()))
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
    return [{"image": str(file), NAME_KEY: name} for name, file in names.items()]


def _held_out(
    dataset_dir: str | os.PathLike | None, phantom_dir: str | os.PathLike | None, modalities: Sequence[str]
) -> str:
    if dataset_dir is None:
        raise ValueError("image: expected a file or a folder; found none. Add --image FILE.")
    entry = load_datalist(dataset_dir, "test", modalities, phantom_dir=phantom_dir, write=False)[0]
    file = next(entry[m] for m in map(canonical, modalities) if m in entry)
    logger.warning("no --image was given: %s, a held-out subject of %s, is translated", file, dataset_dir)
    return file


def _expand(path: Path) -> list[tuple[Path, Path]]:
    """Images at or under ``path``, each with its place relative to it."""
    if not path.exists():
        found = LINK if path.is_symlink() else "nothing there"
        raise FileNotFoundError(f"{path}: expected an image or a folder; found {found}. Correct the path.")
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: expected a file or a folder; found a pipe or a device. Save the scan as a file.")
        check_named_scan(path)
        return [(path, Path(path.name))]
    passed: PassedOver = {}
    folders = [path, *(place for place, is_folder in walk(path, passed) if is_folder)]
    kept = []
    for file in (file for folder in folders for file in _images_in(folder)):
        why = None if file == path else no_scan(file) or (SYNTHETIC if is_synthetic(file) else None)
        if why is None:
            kept.append(file)
        else:
            passed[file] = why
    if not kept:
        found = "; ".join(kinds(passed)) or "none"
        raise ValueError(
            f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}, DICOM) in the folder; found {found}. "
            "Correct the path."
        )
    for said in kinds(passed) if is_main() else ():
        logger.warning("%s: %s", path, said)
    return [(file, Path(path.name) if file == path else file.relative_to(path)) for file in kept]


def _images_in(folder: Path) -> list[Path]:
    """Images that lie in a folder; the folder itself, if it holds the single slices of a DICOM series."""
    files = sorted(
        f for f in folder.iterdir() if f.is_file() and f.name[0] != "." and f.name.lower().endswith(IMAGE_SUFFIXES)
    )
    return files + dicom_inputs(folder)
