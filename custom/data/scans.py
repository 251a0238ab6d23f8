"""What is a scan, and what lies beside scans and looks like one: labels, masks, translations, leftovers.

A translation of a label map would be a plausible false image. In folders these are passed over, and it is said; one
that is named is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from pydicom.errors import InvalidDicomError

from custom.data.dicom_files import DICOM_SUFFIXES, dicom_files, is_dicom
from custom.data.names import SYNTHETIC_SUFFIX, UNCERTAINTY_SUFFIX, image_stem
from custom.data.nifti import load_header
from custom.data.readers import IMAGE_SUFFIXES
from custom.utils.errors import first_of

__all__ = [
    "PassedOver",
    "check_named_scan",
    "is_synthetic",
    "kinds",
    "labels_in",
    "listed",
    "no_scan",
    "says_synthetic",
    "walk",
]

# Last word of a name. "brainmask" and "tumorseg" are written as one word, "mask" and "seg" in them.
LABELS = re.compile(
    r"(?:.*(?:seg|segm|mask|segmentation|segmentations|parcellation|labelmap)|.*[^a-z0-9](?:labels?|gt|roi|lesions?)|"
    r".*gold[^a-z]*standard|.*ground[^a-z]*truth|.*consensus(?:[^a-z]*gt)?|labels?|gt|roi)\d*",
    re.IGNORECASE | re.DOTALL,
)
OUTPUTS = (SYNTHETIC_SUFFIX, UNCERTAINTY_SUFFIX)  # of a translation, and of its error map
MARK = b"SYNTHETIC"
SYNTHETIC_DATA = 0x0008001C  # pydicom 2 does not know its name
UNFINISHED = (".part", ".former")  # of folders whose writing was interrupted
LABEL = "a segmentation or mask by its name"
HIDDEN = "hidden: a name that begins with a dot, such as of a copy that was interrupted"
LINK = "a link that points nowhere"
SYNTHETIC = "a translation already"

PassedOver = dict[Path, str]  # what is no scan → why

NAMED = 4  # files or labels in a line
MOST_LABELS = 16
MOST_PARTS = 512  # labels of a parcellation
ALIKE = 0.8  # share of neighbours with the same value; 0.97 in a parcellation, 0.2 in a scan of a few hundred values
SAMPLE = 200_000  # voxels that are looked at first


def no_scan(path: str | os.PathLike[str]) -> str | None:
    """Why what bears this name is no scan; None for what may be one. Only the last part of the path counts."""
    name = Path(path).name
    if name.startswith("."):
        return HIDDEN
    return LABEL if LABELS.fullmatch(image_stem(name)) else None


def check_named_scan(path: str | os.PathLike[str]) -> None:
    """Refuse a file that was named and is no scan.

    Raises:
        ValueError: saying why.
    """
    why = no_scan(path)
    if why is not None:
        raise ValueError(f"{path}: expected a scan; found {why}. Name a scan; if it is one, rename it.")


def is_synthetic(path: str | os.PathLike[str]) -> bool:
    """Whether an image is a translation, or another output of one: by its name, or by the mark in its header."""
    file = Path(path)
    if image_stem(file).endswith(OUTPUTS):
        return True
    if file.is_dir() or not file.name.lower().endswith((".nii", ".nii.gz")):
        return _is_synthetic_series(file)
    try:
        return says_synthetic(load_header(file).header["descrip"])
    except Exception:  # whatever a broken file provokes is said where it is read
        return False


def says_synthetic(description: Any) -> bool:
    """Whether the description in a header is that of a translation; as text, bytes, or a NumPy array of one."""
    said = np.asarray("" if description is None else description)
    return said.ndim == 0 and (said.item() if said.dtype.kind == "S" else str(said).encode()).startswith(MARK)


def _is_synthetic_series(place: Path) -> bool:
    files = dicom_files(place)[:1] if place.is_dir() else [place] if is_dicom(place) else []
    try:
        headers = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[SYNTHETIC_DATA]) for file in files]
        return any(header[SYNTHETIC_DATA].value == "YES" for header in headers)
    except (InvalidDicomError, OSError, KeyError, ValueError, AttributeError):
        return False


def listed(labels: list[float]) -> str:
    """The values of a label map for a message."""
    texts = [f"{label:g}" for label in labels[:NAMED]]
    if len(labels) > NAMED:
        return ", ".join([*texts, "…"])
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def walk(root: Path, passed: PassedOver) -> Iterator[tuple[Path, bool]]:
    """Files and folders below ``root`` in order, and whether each is a folder; links are followed, once.

    Args:
        root: a folder.
        passed: takes up what is left out: links that point nowhere, and images that are hidden.
    """
    known = {os.path.realpath(root)}
    for folder, names, files in os.walk(root, followlinks=True):
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith("."):
                if path.exists():
                    yield path, False
                else:
                    passed[path] = LINK
            elif name.lower().endswith((*IMAGE_SUFFIXES, *DICOM_SUFFIXES)):
                passed[path] = HIDDEN
        passed |= {Path(folder, name): HIDDEN for name in names if name[:1] == "." and name.endswith(UNFINISHED)}
        names[:] = sorted(n for n in names if not n.startswith("."))
        for name in list(names):
            real = os.path.realpath(os.path.join(folder, name))
            if real in known:
                names.remove(name)
                continue
            known.add(real)
            yield Path(folder, name), True


def kinds(passed: Mapping[Path, str]) -> Iterator[str]:
    """What was passed over, one line for each reason: ``"2 passed over (a translation already): a.nii, b.nii"``."""
    reasons: dict[str, list[str]] = {}
    for path, why in passed.items():
        reasons.setdefault(why, []).append(path.name)
    for why, names in reasons.items():
        yield f"{len(names)} passed over ({why}): {first_of(names, NAMED)}"


def labels_in(values: torch.Tensor) -> list[float] | None:
    """The values of a label map; None for what is a scan.

    A label map holds whole numbers: few, or some hundred, of which nearly all neighbours have the same. A scan's
    voxels differ from their neighbours, however few bits they are stored with.

    Args:
        values: (1, H, W, D) finite intensities, as stored.
    """
    flat = values[torch.isfinite(values)]
    sample = flat[:: max(1, flat.numel() // SAMPLE)]
    if bool((sample != sample.round()).any()) or len(sample.unique()) > MOST_PARTS:
        return None
    found = flat.unique()
    if len(found) > MOST_PARTS or bool((found != found.round()).any()):
        return None
    if len(found) > MOST_LABELS:
        background = found[torch.stack([(sample == value).sum() for value in found]).argmax()]
        inside = values[..., 1:] != background
        alike = (values[..., 1:] == values[..., :-1])[inside]
        if not alike.numel() or alike.float().mean() < ALIKE:
            return None
    return found.tolist()
