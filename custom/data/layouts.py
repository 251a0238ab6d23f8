"""Folder layouts of public data sets: how a path tells the subject, the visit and the modality.

A layout is a row of ``LAYOUTS``, or a pattern of the user's own; one function, :func:`survey`, reads them all.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from custom.data.dicom_files import DICOM_SUFFIXES
from custom.data.names import image_stem
from custom.data.problems import Problem
from custom.data.readers import IMAGE_SUFFIXES
from custom.data.scans import OUTPUTS, SYNTHETIC, PassedOver, kinds, no_scan, walk
from custom.utils.modalities import ALIASES, BRATS_MODALITIES, IXI_MODALITIES, canonical

__all__ = ["LAYOUTS", "SEGMENTATION_KEY", "SUBJECT_KEY", "Layout", "Survey", "discover", "survey"]

logger = logging.getLogger(__name__)

SEGMENTATION_KEY = "seg"
SUBJECT_KEY = "subject"
PLAIN = "plain"
SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES)
_NIFTI = r"\.nii(\.gz)?"
_PLACEHOLDERS = ("subject", "session", "modality")


class Layout(NamedTuple):
    """How files of a data set are named.

    Attributes:
        pattern: regular expression with the groups ``id`` (of the subject at one visit), ``suffix`` (the modality's
            name or alias, or ``seg``), and where one patient can have several ids ``patient``.
        example: a path, for messages.
        modalities: the vocabulary, in order; empty for a layout whose files tell it.
        whole_path: whether ``pattern`` is of the path below the root, which may be a folder with a DICOM series, and
            not of the file's name.
        folder_per_subject: whether a file counts only when its folder bears the subject's id.
        published: subjects of the published training and held-out parts; none where there is no such split.
        held_out: regular expression of a folder's name that holds the held-out part.
        reference: the modality whose grid the others are brought to.
    """

    pattern: re.Pattern[str]
    example: str
    modalities: tuple[str, ...] = ()
    whole_path: bool = False
    folder_per_subject: bool = False
    published: tuple[int, int] | None = None
    held_out: re.Pattern[str] | None = None
    reference: str = ""


LAYOUTS: dict[str, Layout] = {
    "brats2021": Layout(
        pattern=re.compile(rf"(?P<id>.+)_(?P<suffix>[A-Za-z0-9]+){_NIFTI}"),
        example="BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz",
        modalities=BRATS_MODALITIES,
        folder_per_subject=True,
        published=(1251, 219),
        held_out=re.compile("valid", re.IGNORECASE),
    ),
    # the last number is the visit: those of one patient must not be parted
    "brats2023": Layout(
        pattern=re.compile(rf"(?P<id>(?P<patient>.+-\d+)-\d+)-(?P<suffix>[A-Za-z0-9]+){_NIFTI}"),
        example="BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz",
        modalities=BRATS_MODALITIES,
        folder_per_subject=True,
        published=(1251, 219),
        held_out=re.compile("valid", re.IGNORECASE),
    ),
    "ixi": Layout(
        pattern=re.compile(rf"(?P<id>(?P<patient>IXI\d+)-[A-Za-z]+-\d+)-(?P<suffix>[A-Za-z0-9]+){_NIFTI}"),
        example="IXI-T2/IXI002-Guys-0828-T2.nii.gz",
        modalities=IXI_MODALITIES,
        published=(459, 115),
        reference="t2",  # which PD shares
    ),
}


class Survey(NamedTuple):
    """Files found by their names.

    Attributes:
        files: id → modality (or ``seg``) → file, or folder of a DICOM series; sorted.
        patients: id → patient, whose visits belong to one section of a split.
        held_out: ids that lie in the published held-out part.
        modalities: the vocabulary, in order.
        problems: what is wrong with names and folders.
    """

    files: dict[str, dict[str, Path]]
    patients: dict[str, str]
    held_out: frozenset[str]
    modalities: tuple[str, ...]
    problems: list[Problem]


def survey(
    root: str | os.PathLike,
    layout: str = "brats2021",
    *,
    pattern: str | None = None,
    modalities: Sequence[str] | None = None,
) -> Survey:
    """Find the subjects of a data set by the names of its files, in all folders below ``root``.

    Args:
        root: folder of the data set.
        layout: a key of ``LAYOUTS``, or ``plain``.
        pattern: for ``plain``: a path below the root with ``{subject}`` and ``{modality}``, and where a subject was
            scanned several times ``{session}``; ``*`` stands for any text inside a name.
        modalities: the vocabulary; files of other modalities are ignored. By default the layout's, for ``plain`` what
            is found.

    Raises:
        FileNotFoundError: if ``root`` is no folder.
        ValueError: for an unknown layout or a pattern without its placeholders.
    """
    modalities = [modalities] if isinstance(modalities, str) else modalities
    rules = _plain(pattern, modalities) if layout == PLAIN else _layout(layout, pattern)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected a folder in the {layout} layout (such as {rules.example}); found no folder. "
            "Correct the path."
        )
    wanted = [canonical(m) for m in modalities or rules.modalities]
    found = _Findings(rules, folder.resolve(), wanted)
    for path, is_folder in walk(folder.resolve(), found.passed):
        found.add(path, is_folder)
    files = found.files()
    if layout == "ixi":
        found.problems += _shared_ids(files, found.patients)
    return Survey(files, found.patients, frozenset(found.held_out), tuple(wanted or _vocabulary(files)), found.problems)


class _Findings:
    """Collects the files of a data set, path by path.

    Args:
        rules: the layout.
        root: resolved folder of the data set.
        wanted: canonical modalities; all where empty.
    """

    def __init__(self, rules: Layout, root: Path, wanted: Sequence[str]) -> None:
        self.rules = rules
        self.root = root
        self.wanted = {*wanted, SEGMENTATION_KEY} if wanted else set()
        self.patients: dict[str, str] = {}
        self.held_out: set[str] = set()
        self.problems: list[Problem] = []
        self.passed: PassedOver = {}
        self._hits: dict[str, dict[str, list[Path]]] = {}
        self._used: set[Path] = set()  # files and series that are taken, and the folders they lie in
        self._series: set[Path] = set()
        self._others: list[Path] = []  # images that fit no name

    def add(self, path: Path, is_folder: bool) -> None:
        """Take a path, or note that it cannot be."""
        if is_folder and not any(path.iterdir()):
            self.problems.append(Problem("empty_folder", self._name(path), f"{path}: nothing in it"))
            return
        if image_stem(path).endswith(OUTPUTS):
            self.passed |= {} if is_folder else {path: SYNTHETIC}
            return
        if not is_folder and _is_registered(path):
            return
        match = _match(self.rules, path, self.root, is_folder)
        key = canonical(match["suffix"]) if match else ""
        label = key not in {SEGMENTATION_KEY, *self.wanted} and no_scan(key)
        if not match or label or (self.wanted and key not in self.wanted):
            if (match and label) or (not is_folder and path.name.lower().endswith(SUFFIXES)):
                self._others.append(path)
            return
        subject, held_out = match["id"], self.rules.held_out
        self._used |= {path, path.parent}
        self._series |= {path} if is_folder else set()
        self.patients[subject] = match.get("patient") or subject
        self._hits.setdefault(subject, {}).setdefault(key, []).append(path)
        if held_out and any(held_out.search(part) for part in path.relative_to(self.root).parts[:-2]):
            self.held_out.add(subject)

    def files(self) -> dict[str, dict[str, Path]]:
        """Files of each subject, after all paths were added; adds the problems of names to ``problems``."""
        files = {subject: self._one_each(subject, found) for subject, found in sorted(self._hits.items())}
        others = [p for p in self._others if p.parent not in self._series]
        strange = sorted({p.parent for p in others if p.parent not in self._used and p.parent != self.root})
        for path in strange:
            said = f"{path}: no file in it is named as expected, such as {self.rules.example}"
            self.problems.append(Problem("strange_folder", self._name(path), said))
        single = [p for p in others if p.parent not in strange]
        if single:
            names = ", ".join(p.name for p in single[:3])
            self.problems.append(Problem("unused", "", f"{len(single)} images, such as {names}"))
        self.problems += [Problem("passed_over", "", said) for said in kinds(self.passed)]
        return files

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _one_each(self, subject: str, found: dict[str, list[Path]]) -> dict[str, Path]:
        """The file of each modality; where there are two, the subject has a problem."""
        double = {key: paths for key, paths in found.items() if len(paths) > 1}
        if double:
            key, paths = next(iter(double.items()))
            code = "two_files" if len({p.parent for p in paths}) == 1 else "same_id"
            said = f"expected one {key} file for subject {subject}; found {', '.join(map(str, paths))}"
            self.problems.append(Problem(code, subject, said))
        return {key: paths[0] for key, paths in found.items()}


def discover(
    root: str | os.PathLike, modalities: Sequence[str] = BRATS_MODALITIES, *, layout: str = "brats2021"
) -> list[dict[str, Any]]:
    """The subjects of a data set as entries of a datalist, by the names of the files alone.

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
    found = survey(root, layout, modalities=modalities)
    for problem in found.problems:
        if problem.code in ("two_files", "same_id"):
            raise ValueError(f"{problem.found}. {problem.remedy}")
        if problem.code == "passed_over":
            logger.warning("%s: %s", root, problem.found)
    entries = []
    for subject, files in found.files.items():
        present = [m for m in found.modalities if m in files]
        if len(present) < 2:
            logger.warning(
                "%s: subject %s is left out: expected two or more of %s; found %s.",
                root, subject, ", ".join(found.modalities), ", ".join(present) or "none",
            )  # fmt: skip
            continue
        entries.append(entry_of(subject, files, found.modalities))
    if not entries:
        raise ValueError(
            f"{root}: expected subjects in the {layout} layout (such as {LAYOUTS[layout].example}) with two or more of "
            f"{', '.join(found.modalities)}; found {len(found.files)} subjects, none usable. Correct dataset_dir or "
            "the names, or make a datalist with `python -m custom prepare`."
        )
    return entries


def entry_of(subject: str, files: dict[str, Path], modalities: Sequence[str]) -> dict[str, Any]:
    """Datalist entry of one subject: the vocabulary's files in order, then the segmentation."""
    keys = [key for key in (*modalities, SEGMENTATION_KEY) if key in files]
    return {SUBJECT_KEY: subject, **{key: str(files[key]) for key in keys}}


def _layout(name: str, pattern: str | None) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join([*LAYOUTS, PLAIN])}; found {name!r}. Choose from these.")
    if pattern is not None:
        raise ValueError(f"pattern: expected none for the layout {name}; found {pattern!r}. Use --layout {PLAIN}.")
    return LAYOUTS[name]


def _plain(pattern: str | None, modalities: Sequence[str] | None) -> Layout:
    """The layout of a user's pattern such as ``{subject}/{session}_{modality}.nii.gz``."""
    parts = re.split(r"(\{\w*\}|\*)", pattern or "")
    names = [part[1:-1] for part in parts if part.startswith("{")]
    if "subject" not in names or "modality" not in names or set(names) - set(_PLACEHOLDERS):
        raise ValueError(
            f"pattern: expected a path with {{subject}} and {{modality}}, perhaps {{session}}; found {pattern!r}. "
            'Write it such as "{subject}/{modality}.nii.gz".'
        )
    if "{subject}{modality}" in (pattern or "") and not modalities:
        raise ValueError(
            f"pattern: expected a character between subject and modality; found {pattern!r}. Add --modalities, which "
            "tells where a name begins."
        )
    suffix = "[^/]+?"
    if modalities:
        known = [alias for m in modalities for alias in ALIASES.get(canonical(m), (canonical(m),))]
        suffix = "|".join(map(re.escape, sorted([*known, SEGMENTATION_KEY], key=len, reverse=True)))
    texts = {"subject": ("patient", "[^/]+"), "session": ("session", "[^/]+"), "modality": ("suffix", f"(?i:{suffix})")}
    expression = ""
    for part in parts:
        if part.startswith("{"):
            group, text = texts[part[1:-1]]
            expression += f"(?P={group})" if f"(?P<{group}>" in expression else f"(?P<{group}>{text})"
        else:
            expression += "[^/]*" if part == "*" else re.escape(part)
    return Layout(re.compile(expression), example=str(pattern), whole_path=True)


def _is_registered(path: Path) -> bool:
    """Whether this project wrote the file beside the data: a registered scan with its record."""
    stem = image_stem(path)
    return "_to_" in stem and path.with_name(f"{stem}.json").is_file()


def _match(rules: Layout, path: Path, root: Path, is_folder: bool) -> dict[str, str] | None:
    """Groups of a path that the layout knows, always with ``id``."""
    if rules.whole_path:
        match = rules.pattern.fullmatch(path.relative_to(root).as_posix())
        if match is None or (is_folder and not any(child.is_file() for child in path.iterdir())):
            return None
        found = match.groupdict()
        return {**found, "id": "_".join(found[k] for k in ("patient", "session") if found.get(k))}
    match = None if is_folder else rules.pattern.fullmatch(path.name)
    if match is None or (rules.folder_per_subject and path.parent.name != match["id"]):
        return None
    return match.groupdict()


def _shared_ids(files: dict[str, dict[str, Path]], patients: dict[str, str]) -> list[Problem]:
    """IXI's number is a person's: it comes with one site and one scan."""
    ids: dict[str, list[str]] = {}
    for subject in files:
        ids.setdefault(patients[subject], []).append(subject)
    return [
        Problem("same_id", subject, f"{patient} is the id of {', '.join(subjects)}")
        for patient, subjects in ids.items()
        if len(subjects) > 1
        for subject in subjects
    ]


def _vocabulary(files: dict[str, dict[str, Path]]) -> list[str]:
    """Modalities of the files: the known ones in their usual order, then the others by name."""
    found = {key for subject in files.values() for key in subject} - {SEGMENTATION_KEY}
    return [m for m in ALIASES if m in found] + sorted(found - set(ALIASES))
