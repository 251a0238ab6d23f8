"""Names of images and of their translations, and the keys under which items carry them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.data.dicom_files import DICOM_SUFFIXES
from custom.data.readers import IMAGE_SUFFIXES
from custom.utils.modalities import ALIASES, canonical

__all__ = [
    "KNOWN",
    "NAME_KEY",
    "PROVENANCE_KEY",
    "RECORDS_KEY",
    "SYNTHETIC_SUFFIX",
    "TARGETS_KEY",
    "UNCERTAINTY_SUFFIX",
    "WORDS",
    "bids_words",
    "contrast_of",
    "image_stem",
    "image_suffix",
    "sidecar_of",
    "targets_of",
    "translation_name",
    "uncertainty_name",
    "words_of",
]

SYNTHETIC_SUFFIX = "_synthetic"
UNCERTAINTY_SUFFIX = "_uncertainty"
PROVENANCE_KEY = "provenance"  # of the metadata of a source: its content and the identity of what translates it
RECORDS_KEY = "translations"  # of the metadata of a prediction: target → record
NAME_KEY = "name"
TARGETS_KEY = "targets"  # of an item that has targets of its own, with commas between them

KNOWN = {alias for aliases in ALIASES.values() for alias in aliases}
WORDS = re.compile(r"[_\-. ]+")
ENTITY = re.compile(r"([a-z]+)-([a-z0-9+]+)")  # of BIDS
OF_SUBJECT = ("sub", "ses", "run")
MARKS = ("from", "to")
REGISTERED = re.compile(r"_(to_\w+|registered)$", re.IGNORECASE)  # ends of the names that a registration gives


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


def targets_of(item: Mapping[Any, Any], default: Sequence[str]) -> list[str]:
    """The targets of an item that has its own, or else ``default``."""
    return item[TARGETS_KEY].split(",") if TARGETS_KEY in item else list(default)


def translation_name(name: str, target: str) -> str:
    """Name, without a suffix, of the translation into ``target`` of the input called ``name``."""
    return f"{name}_{target}{SYNTHETIC_SUFFIX}"


def uncertainty_name(name: str, target: str) -> str:
    """Name, without a suffix, of the error map of that translation."""
    return f"{translation_name(name, target)}{UNCERTAINTY_SUFFIX}"


def words_of(stem: str) -> list[str]:
    """Words of a name in lower case: ``"P1_T1-pre"`` → ``["p1", "t1", "pre"]``."""
    return [word for word in WORDS.split(stem.lower()) if word]


def bids_words(stem: str) -> tuple[str, list[str]] | None:
    """Subject and words of a name of BIDS, contrasts canonical; None for other names."""
    if not stem.startswith("sub-"):
        return None
    entities: dict[str, tuple[str, str]] = {}
    words: list[str] = []
    for part in stem.split("_"):
        entity = ENTITY.fullmatch(part.lower())
        if entity is None or entity[1] in KNOWN:
            words += [canonical(word) for word in words_of(part)]
        elif entity[1] not in entities:
            entities[entity[1]] = (part, entity[2])
    if "sub" not in entities:
        return None
    subject = "_".join(entities[key][0] for key in OF_SUBJECT if key in entities)
    if "ce" in entities:
        words = ["t1ce" if word == "t1" else word for word in words]
    for mark in MARKS:
        if mark in entities:
            words = [mark, canonical(entities[mark][1]), *words]
    return subject, words


def contrast_of(path: str | os.PathLike, modalities: Sequence[str]) -> str | None:
    """The contrast among ``modalities`` that the name of a scan tells; None where it tells none, or several."""
    stem = REGISTERED.sub("", image_stem(path))
    named = bids_words(stem)
    words = named[1] if named else [canonical(word) for word in words_of(stem)]
    found = {word for word in words if word in {*KNOWN, *map(canonical, modalities)}}
    return next(iter(found)) if len(found) == 1 and found <= {*map(canonical, modalities)} else None
