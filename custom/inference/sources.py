"""Several sources of one subject: a list of files, or what a layout of folders finds of each subject."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pydicom

from custom.data.dicom_files import dicom_files, is_dicom
from custom.data.layouts import LAYOUTS, PLAIN, survey
from custom.data.names import NAME_KEY, TARGETS_KEY, contrast_of, image_stem
from custom.data.problems import PROBLEMS
from custom.data.tolerant import FAULT_KEY
from custom.utils.distributed import is_main
from custom.utils.errors import first_of
from custom.utils.modalities import ALIASES, MISSING, canonical

__all__ = ["one_subject", "set_name", "subjects_in", "wanted_targets"]

logger = logging.getLogger(__name__)

PATIENT = re.compile(r"(?:^|_)sub-([a-z0-9]+)(?:_|$)", re.IGNORECASE)  # of BIDS
PARTS = re.compile(r"[_\-. ]+|[^_\-. ]+")  # of a name: words, and what is between them
UNNAMED = "subject"


def one_subject(
    files: Sequence[Path], modalities: Sequence[str], targets: str | Sequence[str] | None = None
) -> dict[str, Any]:
    """The item of one subject's sources, in the order of their names, whatever order they are given in.

    Args:
        files: scans, or folders with a DICOM series.
        modalities: the vocabulary.
        targets: contrasts that are asked for; ``missing`` for those of the vocabulary that the files' names do not
            tell; None where that is decided later.

    Raises:
        ValueError: for files of several patients; a target that is among the sources by their names; or ``missing``
            where names do not tell the contrasts.
    """
    ordered = sorted(files, key=lambda file: (file.name, str(file)))
    _check_patients(ordered)
    item = {"image": [str(file) for file in ordered], NAME_KEY: set_name(ordered)}
    told = {file: contrast_of(file, modalities) for file in ordered}
    if targets is None:
        return item
    if targets == MISSING:
        unclear = [file for file, contrast in told.items() if contrast is None]
        if unclear:
            raise ValueError(
                f"{unclear[0]}: expected a name that tells the contrast ({', '.join(modalities)}), of which "
                "--targets missing are the others; found none in it, or several. Name the targets, or rename the file."
            )
        item[TARGETS_KEY] = ",".join(wanted_targets(targets, {str(c) for c in told.values()}, modalities))
        if not item[TARGETS_KEY]:
            raise ValueError(
                f"{item[NAME_KEY]}: expected a contrast that is missing; found all of {', '.join(modalities)} among "
                "the sources. Name the target, and leave its scan out."
            )
        return item
    asked = {canonical(t) for t in ([targets] if isinstance(targets, str) else targets)}
    if len(ordered) > 1:
        for file, contrast in told.items():
            if contrast in asked:
                raise ValueError(
                    f"{file}: expected sources of other contrasts than the targets; found {contrast}, a target, in "
                    "its name. Copy that file if it is what you need; otherwise leave it out of --image, or its "
                    "contrast out of --targets."
                )
    return item


def wanted_targets(targets: str | Sequence[str], there: Iterable[str], modalities: Sequence[str]) -> list[str]:
    """The contrasts to be made of a subject that has those of ``there``, in the order that they are asked for in."""
    asked = modalities if targets == MISSING else [targets] if isinstance(targets, str) else targets
    return [name for name in map(canonical, asked) if name not in there]


def set_name(files: Sequence[Path]) -> str:
    """What translations of a set are named after: the words that its files' names begin with, or else their folder.

    ``p1_t1.nii.gz`` and ``p1_flair.nii.gz`` give ``p1``; ``p1/t1.nii.gz`` and ``p1/flair.nii.gz`` do, too.
    """
    stems = [image_stem(file) for file in files]
    if len(stems) == 1:
        return stems[0]
    parts = zip(*(PARTS.findall(stem) for stem in stems), strict=False)
    common = "".join(same[0] for same in takewhile(lambda part: len(set(part)) == 1, parts)).rstrip("_-. ")
    if common and canonical(common) not in ALIASES:
        return common
    return Path(os.path.commonpath([file.absolute().parent for file in files])).name or UNNAMED


def subjects_in(
    root: str | os.PathLike,
    layout: str,
    targets: str | Sequence[str],
    modalities: Sequence[str],
    *,
    pattern: str | None = None,
) -> list[dict[str, Any]]:
    """Items of the subjects of a folder, each with all contrasts that it has and the targets that it lacks.

    Args:
        root: the folder.
        layout: of the folder, as for ``custom.data.layouts.survey``.
        targets: contrasts that are asked for; ``missing`` for all of the vocabulary. A subject that has them all is
            passed over.
        modalities: the vocabulary.
        pattern: of the layout ``plain``.

    Raises:
        FileNotFoundError, ValueError: for no such folder, layout or pattern, or a folder without subjects.
    """
    found = survey(root, layout, pattern=pattern, modalities=list(modalities))
    faults: dict[str, str] = {}
    for problem in found.problems:
        if problem.code in ("two_files", "same_id"):
            faults[problem.subject] = f"{problem.found}. {problem.remedy}"
        elif is_main():
            logger.warning("%s: %s: %s", root, PROBLEMS[problem.code].title, problem.found)
    items: list[dict[str, Any]] = []
    complete = []
    for subject, files in found.files.items():
        there = [m for m in map(canonical, modalities) if m in files]
        wanted = wanted_targets(targets, there, modalities)
        if not there:
            continue
        if not wanted:
            complete.append(subject)
            continue
        item = {"image": [str(files[m]) for m in there], NAME_KEY: subject, TARGETS_KEY: ",".join(wanted)}
        items.append({**item, FAULT_KEY: faults[subject]} if subject in faults else item)
    if not items and not complete:
        example = LAYOUTS[layout].example if layout in LAYOUTS else pattern
        raise ValueError(
            f"{root}: expected subjects in the {layout} layout, such as {example}, with some of "
            f"{', '.join(modalities)}; found none. Correct the path, or choose --layout from "
            f"{', '.join([*LAYOUTS, PLAIN])}."
        )
    if complete and is_main():
        logger.warning(
            "%s: %d of %d subjects lack none of the targets and are passed over: %s",
            root, len(complete), len(complete) + len(items), first_of(complete),
        )  # fmt: skip
    return items


def _check_patients(files: Sequence[Path]) -> None:
    """Refuse files that say to be of different patients, in a name of BIDS or in DICOM."""
    found: Mapping[str, dict[str, Path]] = {"name": {}, "DICOM header": {}}
    for file in files:
        for where, patient in (("name", _patient_of_name(file)), ("DICOM header", _patient_of_header(file))):
            if patient:
                found[where].setdefault(patient, file)
    for where, patients in found.items():
        if len(patients) > 1:
            (one, first), (other, second) = list(patients.items())[:2]
            raise ValueError(
                f"{second}: expected the sources of one subject; found patient {other!r} in its {where}, and {one!r} "
                f"in that of {first}. Translate subjects one after the other, or a folder of them with --layout."
            )


def _patient_of_name(file: Path) -> str | None:
    for part in (image_stem(file), *reversed(file.absolute().parent.parts)):
        if match := PATIENT.search(part):
            return match[1].lower()
    return None


def _patient_of_header(file: Path) -> str | None:
    slices = dicom_files(file) if file.is_dir() else [file] if is_dicom(file) else []
    if not slices:
        return None
    header = pydicom.dcmread(slices[0], stop_before_pixels=True, force=True, specific_tags=["PatientID"])
    return str(header.get("PatientID") or "").strip() or None
