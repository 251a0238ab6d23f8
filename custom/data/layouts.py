"""Folder layouts of public data sets: how a path tells the subject and the modality.

A layout is a row of ``LAYOUTS``; one function reads them all.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from custom.modalities import BRATS_MODALITIES, canonical

logger = logging.getLogger(__name__)

SEGMENTATION_KEY = "seg"
SUBJECT_KEY = "subject"


class Layout(NamedTuple):
    """How files of a data set are named.

    Attributes:
        glob: the files to look at, relative to the root.
        pattern: regular expression of the file's name with the groups ``subject`` and ``suffix`` (the modality's name
            or alias, or ``seg``).
        folder_per_subject: whether a file counts only when its folder bears the subject's name.
        example: a path, for messages.
    """

    glob: str
    pattern: re.Pattern[str]
    folder_per_subject: bool
    example: str


LAYOUTS: dict[str, Layout] = {
    "brats2021": Layout(
        glob="*/*_*.nii*",
        pattern=re.compile(r"(?P<subject>.+)_(?P<suffix>[A-Za-z0-9]+)\.nii(\.gz)?"),
        folder_per_subject=True,
        example="BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz",
    ),
}


def discover(
    root: str | os.PathLike, modalities: Sequence[str] = BRATS_MODALITIES, *, layout: str = "brats2021"
) -> list[dict[str, Any]]:
    """Find the subjects of a data set by the names of its files.

    A subject may lack modalities. One that has fewer than two is left out with a warning: there is no pair to learn
    from or to compare.

    Args:
        root: folder of the data set.
        modalities: the vocabulary; files of other modalities are ignored.
        layout: a key of ``LAYOUTS``.

    Returns:
        Entries ``{"subject": id, "<modality>": absolute path, ..., "seg": path?}`` sorted by subject.

    Raises:
        FileNotFoundError: if ``root`` is no folder.
        ValueError: for an unknown layout, two files for one modality of a subject, or no usable subject.
    """
    rules = _layout(layout)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected a folder in the {layout} layout (such as {rules.example}); found no folder. "
            "Correct dataset_dir."
        )
    vocabulary = [canonical(m) for m in modalities]
    subjects = _collect(folder.resolve(), rules, {*vocabulary, SEGMENTATION_KEY})
    entries = []
    for subject in sorted(subjects):
        files = subjects[subject]
        present = [m for m in vocabulary if m in files]
        if len(present) < 2:
            logger.warning(
                "%s: subject %s is left out: expected two or more of %s; found %s.",
                folder, subject, ", ".join(vocabulary), ", ".join(present) or "none",
            )  # fmt: skip
            continue
        kept = [*present, *([SEGMENTATION_KEY] if SEGMENTATION_KEY in files else [])]
        entries.append({SUBJECT_KEY: subject, **{key: str(files[key]) for key in kept}})
    if not entries:
        raise ValueError(
            f"{folder}: expected subjects in the {layout} layout (such as {rules.example}) with two or more of "
            f"{', '.join(vocabulary)}; found {len(subjects)} subjects, none usable. Correct dataset_dir or the names."
        )
    return entries


def discover_brats2021(root: str | os.PathLike, modalities: Sequence[str] = BRATS_MODALITIES) -> list[dict[str, Any]]:
    """Entries of a folder in the BraTS 2021 layout, ``<id>/<id>_<modality>.nii.gz``; see :func:`discover`."""
    return discover(root, modalities, layout="brats2021")


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}; found {name!r}. Choose from the list.")
    return LAYOUTS[name]


def _collect(root: Path, rules: Layout, wanted: set[str]) -> dict[str, dict[str, Path]]:
    """Files of each subject by canonical modality."""
    subjects: dict[str, dict[str, Path]] = {}
    for path in sorted(root.glob(rules.glob)):
        match = rules.pattern.fullmatch(path.name)
        if not path.is_file() or match is None:
            continue
        subject, key = match["subject"], canonical(match["suffix"])
        if key not in wanted or (rules.folder_per_subject and path.parent.name != subject):
            continue
        files = subjects.setdefault(subject, {})
        if key in files:
            raise ValueError(
                f"{path}: expected one {key} file for subject {subject}; found {files[key].name} beside it. "
                "Remove or rename one of them."
            )
        files[key] = path
    return subjects
