"""Preparation of a data set: find its subjects, check every file, split by subject, write the datalist and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from custom.data.datalist import write_datalist
from custom.data.layouts import LAYOUTS, SEGMENTATION_KEY, Survey, entry_of, survey
from custom.data.problems import Problem
from custom.data.splits import SECTIONS, Entry, read_split_file, split_by_subject
from custom.preparation.alignment import Aligned, align
from custom.preparation.checks import Checked, check_file
from custom.preparation.cohort import check_names, duplicates, mixed_grids
from custom.preparation.page import Preparation, write_reports
from custom.utils.arguments import as_bool
from custom.utils.modalities import canonical
from custom.utils.pool import in_processes

__all__ = ["check_all", "prepare"]

FRACTIONS = (0.8, 0.1, 0.1)
VALIDATION_SHARE = 0.1  # of the published training part
CHUNK = 4  # files that a process is given at once

Job = tuple[str, bool]  # path, and whether it is a segmentation


def prepare(
    root: str | os.PathLike,
    out: str | os.PathLike,
    *,
    layout: str = "brats2021",
    pattern: str | None = None,
    modalities: Sequence[str] | None = None,
    split: Sequence[float] | None = None,
    split_file: str | os.PathLike | None = None,
    seed: int = 0,
    strict: bool | str = False,
    modality_check: bool | str = True,
    register: str | None = None,
    registered_dir: str | os.PathLike | None = None,
    workers: int | None = None,
) -> Preparation:
    """Make a data set's datalist, and ``prepare.html`` and ``prepare.txt`` beside it.

    A subject with a problem is named and left out.

    Args:
        root: folder of the data set.
        out: the datalist to write.
        layout, pattern, modalities: as for :func:`custom.data.layouts.survey`.
        split: shares of training, validation and test; by default the published split where the data set is complete,
            otherwise 0.8, 0.1, 0.1.
        split_file: as for :func:`custom.data.splits.read_split_file`, instead of shares.
        seed: of the split.
        strict: a subject that would be left out is an error: reports are written, the datalist is not.
        modality_check: whether to look for modalities whose names are exchanged.
        register: a modality, to whose grid a subject's others are registered where they lie on another; by default the
            layout's (``t2`` for IXI), ``none`` to leave such subjects out.
        registered_dir: folder for the registered scans; where not given they lie beside the originals.
        workers: processes; by default one for each core.

    Raises:
        FileNotFoundError: if the folder or the split file is missing.
        ValueError: for arguments that do not fit, if no subject can be used, or in strict mode if one cannot.
    """
    strict, modality_check = as_bool("strict", strict), as_bool("modality_check", modality_check)
    workers = _number_of_workers(workers)
    if split is not None and split_file is not None:
        raise ValueError("split: expected shares or a split file; found both. Leave one out.")
    sections = None if split_file is None else read_split_file(split_file)
    found = survey(root, layout, pattern=pattern, modalities=modalities)
    started = time.monotonic()
    checked = _check_subjects(found, workers)
    seconds = time.monotonic() - started
    reference = _reference(register, layout, found.modalities)
    aligned = align(checked, reference, workers=workers, output_dir=registered_dir) if reference else []
    _replace(found, checked, aligned)
    problems = [*found.problems, *_registered(aligned, reference), *_problems(found, checked, modality_check)]
    excluded = {p.subject for p in problems if p.leaves_out}
    usable = [entry_of(s, files, found.modalities) for s, files in found.files.items() if s not in excluded]
    divided, notes, more = _divide(usable, found, layout, split, sections, seed)
    done = Preparation(
        Path(root).expanduser().resolve(), layout, Path(out).expanduser(), found.modalities, checked, problems + more,
        divided, notes, seconds, workers, aligned,
    )  # fmt: skip
    reports = write_reports(done)
    if not any(divided.values()):
        raise ValueError(
            f"{root}: expected subjects in the {layout} layout with two or more modalities; found {len(found.files)} "
            f"subjects, none usable. See {reports[0]}."
        )
    if strict and done.left_out:
        raise ValueError(
            f"{root}: expected no subject with a problem (strict); found {len(done.left_out)}, such as "
            f"{_first(done)}. Mend them, see {reports[0]}, or leave out --strict."
        )
    write_datalist(done.datalist, divided, found.modalities)
    return done


def _number_of_workers(workers: int | None) -> int:
    number = len(os.sched_getaffinity(0)) if workers is None and hasattr(os, "sched_getaffinity") else workers
    number = number or os.cpu_count() or 1
    if number < 1:
        raise ValueError(f"workers: expected at least 1; found {workers}. Correct it.")
    return number


def _first(done: Preparation) -> str:
    subject, (problem, *_) = next(iter(done.left_out.items()))
    return f"{subject} ({problem.title}: {problem.found})"


def _reference(register: str | None, layout: str, modalities: Sequence[str]) -> str:
    if register is None:
        return LAYOUTS[layout].reference if layout in LAYOUTS else ""
    if str(register).lower() in ("none", "false") or not modalities:  # without any, the finding of files says why
        return ""
    if canonical(register) not in modalities:
        raise ValueError(f"register: expected one of {', '.join(modalities)}, or none; found {register!r}. Correct it.")
    return canonical(register)


def _replace(found: Survey, checked: dict[str, dict[str, Checked]], aligned: Sequence[Aligned]) -> None:
    """From here on a registered scan stands for its original."""
    for subject, modality, registration, new, _ in aligned:
        if registration is not None and new is not None:
            found.files[subject][modality] = registration.image
            checked[subject][modality] = new


def _registered(aligned: Sequence[Aligned], reference: str) -> list[Problem]:
    problems = []
    for subject, modality, done, _, fault in aligned:
        if done is None:
            problems.append(Problem("registration", subject, f"{modality}: {fault}"))
            continue
        said = (
            f"{modality} moved by {done.shift:.1f} mm and {done.rotation:.1f}° to {reference}; mutual information "
            f"{done.information_before:.3f} before, {done.information_after:.3f} bits after"
        )
        problems.append(Problem("registered", subject, said))
    return problems


def _check_subjects(found: Survey, workers: int) -> dict[str, dict[str, Checked]]:
    keys = [(subject, key) for subject, files in found.files.items() for key in files]
    jobs = [(str(found.files[subject][key]), key == SEGMENTATION_KEY) for subject, key in keys]
    checked: dict[str, dict[str, Checked]] = {}
    for (subject, key), result in zip(keys, check_all(jobs, workers), strict=True):
        checked.setdefault(subject, {})[key] = result
    return checked


def check_all(jobs: Sequence[Job], workers: int, *, progress: bool = True) -> list[Checked]:
    """Check files in several processes; one that takes its process with it is named, and the others go on.

    Args:
        jobs: path, and whether it is a segmentation.
        workers: processes; 1 for this one alone.
        progress: show a progress bar.
    """
    return in_processes(
        _check, jobs, workers, lost=_killed, description="checking files", chunk=CHUNK, progress=progress
    )


def _check(job: Job) -> Checked:
    path, label = job
    return check_file(path, label=label)


def _killed(job: Job) -> Checked:
    return Checked(job[0], ("unreadable", "the process that read it was killed (by its decoder, or for memory)"))


def _problems(found: Survey, checked: dict[str, dict[str, Checked]], modality_check: bool) -> list[Problem]:
    problems = []
    for subject, files in checked.items():
        for key, file in files.items():
            if file.fault:
                problems.append(Problem(file.fault[0], subject, f"{key}: {file.path}: {file.fault[1]}"))
            problems += [Problem(code, subject, f"{key}: {said}") for code, said in file.remarks]
        problems += mixed_grids(subject, files)
        missing = [m for m in found.modalities if m not in files]
        if len(found.modalities) - len(missing) < 2:
            problems.append(Problem("single", subject, f"found {', '.join(files) or 'none'}"))
        elif missing:
            problems.append(Problem("incomplete", subject, f"no {', '.join(missing)}"))
    excluded = {p.subject for p in (*found.problems, *problems) if p.leaves_out}
    ambiguous = {p.subject for p in found.problems if p.code == "same_id"}
    # of two copies a subject without other problems is the one that is kept
    ordered = sorted((s for s in checked if s not in ambiguous), key=lambda s: s in excluded)
    problems += duplicates({s: checked[s] for s in ordered}, labels=(SEGMENTATION_KEY,))
    if modality_check:
        names = check_names(checked, found.modalities)
        problems += names.problems
        if names.unclear:
            pairs = ", ".join(" / ".join(pair) for pair in names.unclear)
            problems.append(Problem("unchecked", "", f"exchanged names could not be seen for {pairs}"))
    return problems


def _divide(
    usable: Sequence[Entry],
    found: Survey,
    layout: str,
    split: Sequence[float] | None,
    sections: dict[str, list[str]] | None,
    seed: int,
) -> tuple[dict[str, list[Entry]], list[str], list[Problem]]:
    """Sections of the usable subjects, what to say about them, and problems of the split."""
    if sections is not None:
        return _by_file(usable, found, sections)
    published = LAYOUTS[layout].published if layout in LAYOUTS else None
    if split is None and published and len(found.files) == sum(published):
        return _as_published(usable, found, published, seed)
    try:
        divided = split_by_subject(usable, split or FRACTIONS, seed, patients=found.patients) if usable else {}
    except ValueError:
        if split is not None:
            raise
        said = f"{len(usable)} subjects: all are in the section test"
        return {"training": [], "validation": [], "test": list(usable)}, [said + "."], [Problem("few", "", said)]
    shares = ", ".join(f"{share:g} {section}" for section, share in zip(SECTIONS, split or FRACTIONS, strict=True))
    notes = [f"Split at random by subject, seed {seed}: {shares}."]
    if published:
        whole = f"{published[0]} for training and {published[1]} held out"
        notes.append(f"The whole published data set has {whole}; found {len(found.files)} subjects.")
    return divided, notes, []


def _by_file(
    usable: Sequence[Entry], found: Survey, sections: dict[str, list[str]]
) -> tuple[dict[str, list[Entry]], list[str], list[Problem]]:
    problems = [
        Problem("two_sections", subject, f"in {' and '.join(named)}")
        for subject, named in sections.items()
        if len(named) > 1
    ]
    problems += [
        Problem("no_such_subject", "", f"{subject} in {', '.join(named)}")
        for subject, named in sections.items()
        if subject not in found.files
    ]
    problems += [Problem("not_in_split", s, "in no section") for s in found.files if s not in sections]
    problems += _parted_patients(found, sections)
    refused = {p.subject for p in problems if p.leaves_out}
    divided: dict[str, list[Entry]] = {section: [] for section in SECTIONS}
    for entry in usable:
        if entry["subject"] not in refused:
            divided[sections[entry["subject"]][0]].append(entry)
    return divided, ["Split as the split file says."], problems


def _parted_patients(found: Survey, sections: dict[str, list[str]]) -> list[Problem]:
    """Visits of one patient in two sections: the patient is in both."""
    of: dict[str, set[str]] = {}
    for subject in found.files:
        of.setdefault(found.patients[subject], set()).update(sections.get(subject, [])[:1])
    return [
        Problem("two_sections", subject, f"visits of {found.patients[subject]} are in {' and '.join(sorted(named))}")
        for subject in found.files
        if len(sections.get(subject, [])) == 1 and len(named := of[found.patients[subject]]) > 1
    ]


def _as_published(
    usable: Sequence[Entry], found: Survey, published: tuple[int, int], seed: int
) -> tuple[dict[str, list[Entry]], list[str], list[Problem]]:
    """The published held-out part is the test section; validation is drawn from the training part."""
    known = bool(found.held_out)
    test = [e for e in usable if e["subject"] in found.held_out]
    rest = [e for e in usable if e["subject"] not in found.held_out]
    if not known:
        share = published[1] / sum(published)
        drawn = split_by_subject(usable, (1 - share, 0, share), seed, patients=found.patients)
        rest, test = drawn["training"], drawn["test"]
    inner = split_by_subject(rest, (1 - VALIDATION_SHARE, VALIDATION_SHARE, 0), seed, patients=found.patients)
    sizes = f"{len(rest)} for training (of which {len(inner['validation'])} validation), {len(test)} held out"
    notes = [
        f"Complete data set; published: {published[0]} for training, {published[1]} held out; here {sizes}.",
        "The held-out part is that of the folders." if known else f"The held-out part is drawn at random, seed {seed}.",
    ]
    equal = (len(rest), len(test)) == published
    problems = [] if equal else [Problem("published", "", f"{sizes}; published {published[0]} and {published[1]}")]
    return {**inner, "test": test}, notes, problems
