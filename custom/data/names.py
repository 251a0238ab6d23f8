"""Names of images and of their translations, and the keys under which items carry them."""

from __future__ import annotations

import os
from pathlib import Path

from custom.data.dicom_files import DICOM_SUFFIXES
from custom.data.readers import IMAGE_SUFFIXES

__all__ = [
    "NAME_KEY",
    "PROVENANCE_KEY",
    "RECORDS_KEY",
    "SYNTHETIC_SUFFIX",
    "image_stem",
    "image_suffix",
    "sidecar_of",
    "translation_name",
]

SYNTHETIC_SUFFIX = "_synthetic"
PROVENANCE_KEY = "provenance"  # of the metadata of a source: its content and the identity of what translates it
RECORDS_KEY = "translations"  # of the metadata of a prediction: target → record
NAME_KEY = "name"


def image_stem(path: str | os.PathLike) -> str:
    """Name of a file without the suffix of an image, or of a folder: ``"a/b.c.nii.gz"`` → ``"b.c"``."""
    name = Path(path).name
    return next((name[: -len(s)] for s in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES) if name.lower().endswith(s)), name)


def image_suffix(path: str | os.PathLike, default: str = ".nii.gz") -> str:
    """Suffix of an image file, ``"a/b.c.nrrd"`` → ``".nrrd"``; ``default`` for what translations are not written as."""
    name = Path(path).name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), default)


def sidecar_of(path: str | os.PathLike) -> Path:
    """The JSON file that tells what an image is: ``"a/b.nii.gz"`` → ``"a/b.json"``."""
    return Path(path).with_name(f"{image_stem(path)}.json")


def translation_name(name: str, target: str) -> str:
    """Name, without a suffix, of the translation into ``target`` of the input called ``name``."""
    return f"{name}_{target}{SYNTHETIC_SUFFIX}"
