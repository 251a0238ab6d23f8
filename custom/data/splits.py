"""Splits of a data set: which subjects belong to training, validation and test."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.data.layouts import SUBJECT_KEY
from custom.utils.files import parse_json, read_text

__all__ = ["DATALIST_NAME", "SECTIONS", "Entry", "read_split_file", "split_by_subject"]

SECTIONS = ("training", "validation", "test")
DATALIST_NAME = "datalist.json"

Entry = dict[str, Any]


def split_by_subject(
    entries: Sequence[Entry],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    counts: Sequence[int] | None = None,
    patients: Mapping[str, str] | None = None,
) -> dict[str, list[Entry]]:
    """Divide subjects at random among the sections; every section with a share gets at least one.

    Args:
        entries: one entry a subject, or several that ``patients`` joins.
        fractions: shares of training, validation and test, which sum to 1.
        seed: of the shuffle; the result does not depend on the order of ``entries``.
        counts: numbers of subjects instead of fractions; they sum to the number of entries.
        patients: subject → patient: what one patient has stays in one section, and ``fractions`` are of patients. By
            default each subject is a patient.

    Raises:
        ValueError: for a repeated subject, shares or counts that do not fit, or too few subjects.
    """
    ordered = sorted(entries, key=lambda e: str(e[SUBJECT_KEY]))
    names = [str(e[SUBJECT_KEY]) for e in ordered]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(f"datalist: expected each subject once; found {', '.join(repeated)} repeated. Merge them.")
    groups: dict[str, list[Entry]] = {}
    for name, entry in zip(names, ordered, strict=True):
        groups.setdefault((patients or {}).get(name, name), []).append(entry)
    drawn = [*groups.values()]
    sizes = _section_sizes(len(drawn), fractions) if counts is None else _checked_counts(len(drawn), counts)
    random.Random(seed).shuffle(drawn)
    split, start = {}, 0
    for section, size in zip(SECTIONS, sizes, strict=True):
        chosen = [entry for group in drawn[start : start + size] for entry in group]
        split[section] = sorted(chosen, key=lambda e: str(e[SUBJECT_KEY]))
        start += size
    return split


def _checked_counts(total: int, counts: Sequence[int]) -> list[int]:
    sizes = [int(c) for c in counts]
    if len(sizes) != len(SECTIONS) or min(sizes) < 0 or sum(sizes) != total:
        raise ValueError(
            f"counts: expected {len(SECTIONS)} numbers ({', '.join(SECTIONS)}) that sum to {total} subjects; "
            f"found {list(counts)}. Correct the counts."
        )
    return sizes


def _section_sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Largest-remainder rounding, at least one subject for each section whose share is not zero."""
    shares = [float(f) for f in fractions]
    if len(shares) != len(SECTIONS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"fractions: expected {len(SECTIONS)} shares ({', '.join(SECTIONS)}) that sum to 1; "
            f"found {list(fractions)}. Correct the fractions."
        )
    asked = [i for i, s in enumerate(shares) if s > 0]
    if total < len(asked):
        raise ValueError(
            f"datalist: expected at least {len(asked)} subjects for {', '.join(SECTIONS[i] for i in asked)}; "
            f"found {total}. Add subjects, or write a {DATALIST_NAME} that says which section each belongs to."
        )
    exact = [s * total for s in shares]
    sizes = [max(int(e), 1) if i in asked else 0 for i, e in enumerate(exact)]
    while sum(sizes) != total:
        step = 1 if sum(sizes) < total else -1
        movable = asked if step > 0 else [i for i in asked if sizes[i] > 1]
        best = max(movable, key=lambda i: step * (exact[i] - sizes[i]))
        sizes[best] += step
    return sizes


def read_split_file(path: str | os.PathLike) -> dict[str, list[str]]:
    """Sections of each subject that a file names; more than one is for the caller to refuse.

    Args:
        path: JSON ``{"training": [id or entry, ...], ...}`` (a datalist, for example), or CSV lines ``id,section``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for other content, or a section that does not exist.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"{source}: expected a split file; found no file. Correct --split_file.")
    text = read_text(source)
    try:
        pairs = _json_pairs(parse_json(text)) if text.lstrip().startswith("{") else _csv_pairs(text)
    except ValueError as error:
        raise ValueError(
            f'{source}: expected JSON {{"training": [ids], ...}} or CSV lines "id,section"; found {error}. Correct it.'
        ) from error
    sections: dict[str, list[str]] = {}
    for subject, section in pairs:
        if section not in SECTIONS:
            raise ValueError(
                f"{source}: expected a section of {', '.join(SECTIONS)} for {subject}; found {section!r}. Correct it."
            )
        sections.setdefault(subject, []).append(section)
    return {subject: sorted(set(found), key=SECTIONS.index) for subject, found in sections.items()}


def _json_pairs(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for section, items in content.items():
        if section == "modalities":
            continue
        if not isinstance(items, list):
            raise ValueError(f"{type(items).__name__} instead of a list under {section!r}")
        for item in items:
            subject = item.get(SUBJECT_KEY) if isinstance(item, dict) else item
            if not isinstance(subject, str | int) or subject == "":
                raise ValueError(f"{item!r} under {section!r}, which names no subject")
            pairs.append((str(subject), section))
    return pairs


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    """Of lines divided by commas, semicolons (Excel in much of Europe) or tabs; the first line may be a heading."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip("\t;, ")]
    if lines and lines[0][1].lower().startswith("sep="):  # for Excel itself
        lines.pop(0)

    def fit(divider: str) -> tuple[int, int]:
        rows = [_cells(line, divider) for _, line in lines]
        return sum(row[1:2] != [] and row[1] in SECTIONS for row in rows), sum(len(row) > 1 for row in rows)

    divider = max("\t;,", key=fit)
    pairs: list[tuple[str, str]] = []
    for number, line in lines:
        cells = _cells(line, divider)
        if len(cells) < 2 or not cells[0]:
            raise ValueError(f"{line!r} in line {number}")
        if pairs or cells[1].lower() not in ("section", "split"):
            pairs.append((cells[0], cells[1]))
    return pairs


def _cells(line: str, divider: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=divider, strict=True))]
    except csv.Error:  # such as a quotation mark without its other half
        return []
