"""Which predicted file belongs to which true one: names alone tell, whoever wrote them.

A true file is ``<subject>_<modality>``, in any folder, or ``<subject>/<modality>``; a folder with a datalist is read by
it. A predicted file is ``<subject>_<source>_<target>``, ``<subject>_<source>_to_<target>`` or ``<subject>_<target>``,
with or without this bundle's ending ``_synthetic``, or lies in a folder with the subject's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from custom.data.datalist import DATALIST_NAME, SECTIONS, read_datalist
from custom.data.layouts import SEGMENTATION_KEY, SUBJECT_KEY
from custom.data.names import SYNTHETIC_SUFFIX, image_stem
from custom.data.readers import IMAGE_SUFFIXES
from custom.utils.modalities import ALIASES, canonical

__all__ = ["Matched", "PredictedFile", "find_truths", "match_predictions"]

KNOWN = {alias for aliases in ALIASES.values() for alias in aliases}
WORDS = re.compile(r"[_\-. ]+")
FILLERS = ("to", "from", "pred", "synthetic", "fake")


class PredictedFile(NamedTuple):
    """A predicted file and what its name says; ``source`` is empty where the name holds none."""

    subject: str
    source: str
    target: str
    path: Path


class Matched(NamedTuple):
    """The files of one folder of predictions, and those that belong to no true file, each with the reason."""

    files: list[PredictedFile]
    unmatched: dict[str, str]


def find_truths(folder: Path, modalities: Sequence[str] = ()) -> dict[str, dict[str, Path]]:
    """True files by subject and modality (``seg`` for a label).

    Args:
        folder: the data set.
        modalities: names of contrasts beside the usual ones.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image whose name ends in a modality, or two for one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of true images; found none. Correct the path.")
    if (folder / DATALIST_NAME).is_file():
        content = read_datalist(folder / DATALIST_NAME)
        entries = [entry for section in SECTIONS for entry in content[section]]
        return {e[SUBJECT_KEY]: {k: Path(v) for k, v in e.items() if k != SUBJECT_KEY} for e in entries}
    known = {*KNOWN, SEGMENTATION_KEY, *map(canonical, modalities)}
    found: dict[str, dict[str, Path]] = {}
    for path in _images(folder):
        *before, last = _words(image_stem(path))
        if last not in known:
            continue
        subject = image_stem(path)[: -len(last)].rstrip("_-. ") if before else path.parent.name
        files = found.setdefault(subject, {})
        if canonical(last) in files:
            raise ValueError(
                f"{path}: expected one {canonical(last)} of subject {subject}; found {files[canonical(last)]} too. "
                "Remove one, or describe the data set in a datalist."
            )
        files[canonical(last)] = path
    found = {subject: files for subject, files in found.items() if set(files) != {SEGMENTATION_KEY}}
    if not found:
        raise ValueError(
            f"{folder}: expected images named <subject>_<modality> with one of {', '.join(sorted(known))}; found none. "
            f"Rename them, or describe the data set in {DATALIST_NAME}."
        )
    return found


def match_predictions(folder: Path, truths: Mapping[str, Mapping[str, Path]]) -> Matched:
    """The predicted files of a folder and the subject, source and target of each.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for two files for one subject, source and target.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of predictions; found none. Correct the path.")
    files: dict[tuple[str, str, str], PredictedFile] = {}
    unmatched: dict[str, str] = {}
    for path in _images(folder):
        name = path.relative_to(folder).as_posix()
        found = _read_name(path, folder, truths)
        if isinstance(found, str):
            unmatched[name] = found
        elif (found[:3]) in files:
            raise ValueError(
                f"{path}: expected one prediction of {found.target} for {found.subject}; found {files[found[:3]].path} "
                "too. Remove one."
            )
        else:
            files[found[:3]] = found
    return Matched(list(files.values()), unmatched)


def _read_name(path: Path, folder: Path, truths: Mapping[str, Mapping[str, Path]]) -> PredictedFile | str:
    stem = image_stem(path).removesuffix(SYNTHETIC_SUFFIX)
    folders = path.relative_to(folder).parts[:-1]
    inside = [s for s in truths if s in folders]
    named = [s for s in truths if stem == s or (stem.startswith(s) and WORDS.match(stem[len(s) :]))]
    if not named and not inside:
        return "no true subject has the beginning of its name"
    subject = max(named or inside, key=len)
    contrasts = {m for files in truths.values() for m in files} - {SEGMENTATION_KEY}
    words = [w for w in _words(stem[len(subject) :] if named else stem) if w not in FILLERS]
    words = [canonical(w) for w in words]
    known = [w for w in words if w in contrasts or w in KNOWN]
    own = [m for m in truths[subject] if m != SEGMENTATION_KEY]
    if not known and len(own) == 1:
        known = own
    if not known:
        return "its name holds no modality"
    target = known[-1]
    if target not in own:
        return f"no true {target} of {subject}"
    return PredictedFile(subject, known[-2] if len(known) > 1 else "", target, path)


def _images(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.lower().endswith(IMAGE_SUFFIXES)]


def _words(stem: str) -> list[str]:
    return [word for word in WORDS.split(stem.lower()) if word]
