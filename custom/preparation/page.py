"""Report of a prepared data set: ``prepare.html``, one file that needs no network, and ``prepare.txt``."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from custom.data.layouts import SEGMENTATION_KEY
from custom.data.problems import PROBLEMS, Problem
from custom.data.splits import Entry
from custom.evaluation.rows import display_name
from custom.preparation.alignment import Aligned
from custom.preparation.checks import Checked
from custom.preparation.registration import Registration
from custom.reports.render import Table, to_html, to_text
from custom.utils.files import atomic_write

__all__ = ["Preparation", "write_reports"]

TEMPLATE = "preparation.html.jinja"
SHOWN_SUBJECTS = 40  # rows of pictures
LISTED = 30  # problems of a kind that the page shows at once
CELL = 116  # pixels of a picture
GRIDS = 12  # rows of the table of grids
BOARDS = 6  # registrations that are shown


class Preparation(NamedTuple):
    """Findings and decisions of a preparation, for the report.

    Attributes:
        root: folder of the data set.
        layout: its name.
        datalist: path of the datalist.
        modalities: the vocabulary, in order.
        checked: subject → modality (or ``seg``) → what its file holds.
        problems: of files, subjects and the data set.
        split: section → entries; the subjects that are left out are in none.
        notes: sentences about the split.
        seconds: that the checks of the files took.
        workers: processes that made them.
        aligned: scans that were registered to another modality's grid.
    """

    root: Path
    layout: str
    datalist: Path
    modalities: tuple[str, ...]
    checked: dict[str, dict[str, Checked]]
    problems: list[Problem]
    split: dict[str, list[Entry]]
    notes: list[str]
    seconds: float
    workers: int
    aligned: list[Aligned]

    @property
    def left_out(self) -> dict[str, list[Problem]]:
        """Subjects that are in no section, with the reasons."""
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            if problem.leaves_out:
                found.setdefault(problem.subject, []).append(problem)
        return found


def write_reports(done: Preparation) -> tuple[Path, Path]:
    """Write ``prepare.html`` and ``prepare.txt`` beside the datalist; returns their paths."""
    folder = done.datalist.parent
    html, text = folder / "prepare.html", folder / "prepare.txt"
    tables = [_sections(done), _modalities(done), _grids(done), *_registrations(done)]
    with atomic_write(text) as temporary:
        temporary.write_text(_text(done, tables), encoding="utf-8")
    with atomic_write(html) as temporary:
        temporary.write_text(_page(done, tables), encoding="utf-8")
    return html, text


def summary(done: Preparation) -> str:
    """Two sentences on the findings."""
    files = sum(map(len, done.checked.values()))
    used = sum(map(len, done.split.values()))
    rate = files / max(done.seconds, 1e-9)
    processes = "1 process" if done.workers == 1 else f"{done.workers} processes"
    return (
        f"{used} of {len(done.checked)} subjects can be used. {files} files were checked in {done.seconds:.0f} s "
        f"({rate:.1f} a second, {processes})."
    )


def _sections(done: Preparation) -> Table:
    keys = [*done.modalities, SEGMENTATION_KEY]
    rows = [
        [section, str(len(entries)), *(str(sum(key in e for e in entries)) for key in keys)]
        for section, entries in done.split.items()
    ]
    left_out = [s for s in done.checked if s in done.left_out or s not in _used(done)]
    rows.append(["left out", str(len(left_out)), *(str(sum(k in done.checked[s] for s in left_out)) for k in keys)])
    head = ["section", "subjects", *map(display_name, done.modalities), "labels"]
    return Table("Subjects and files by section", head, rows, note=" ".join(done.notes))


def _modalities(done: Preparation) -> Table:
    rows = []
    for modality in done.modalities:
        files = [f[modality] for f in done.checked.values() if modality in f]
        good = [c for c in files if not c.fault and c.pattern is not None]
        types = ", ".join(f"{kind} ({n})" for kind, n in Counter(c.dtype for c in good).most_common(3))
        low, high = ([c.usual[i] for c in good] for i in (0, 1))
        ends = [v for c in good for v in c.extremes]
        rows.append(
            [
                display_name(modality), str(len(files)), str(len(good)), types or "-", _span(low), _span(high),
                f"{min(ends):.4g} to {max(ends):.4g}" if ends else "-",
            ]
        )  # fmt: skip
    head = ["modality", "files", "readable", "stored as", "percentile 0.5", "percentile 99.5", "lowest to highest"]
    note = "Percentiles are those of a file's foreground: median (smallest to largest) over the files."
    return Table("Intensities by modality", head, rows, note=note)


def _span(values: Sequence[float]) -> str:
    spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
    return f"{np.median(values):.4g}{spread}" if values else "-"


def _grids(done: Preparation) -> Table:
    known = [(key, c) for files in done.checked.values() for key, c in files.items() if c.shape]
    counted = Counter((c.shape, tuple(round(s, 3) for s in c.spacing)) for _, c in known)
    rows = []
    for (shape, spacing), number in counted.most_common(GRIDS):
        keys = {key for key, c in known if c.shape == shape and np.allclose(c.spacing, spacing, atol=1e-3)}
        names = [display_name(m) for m in done.modalities if m in keys]
        labels = ["labels"] if SEGMENTATION_KEY in keys else []
        rows.append([_times(shape), _times(f"{s:.4g}" for s in spacing), str(number), ", ".join([*names, *labels])])
    heads = np.array([c.head for _, c in known if c.head]).reshape(-1, 3)
    note = "Axes: left-right, back-front, bottom-top."
    if len(heads):
        largest, usual = (_times(f(heads, axis=0).astype(int)) for f in (np.max, np.median))
        note += f" Box around what is not background, in voxels: median {usual}, largest {largest}."
    if len(counted) > GRIDS:
        note += f" {len(counted) - GRIDS} rarer grids are not listed."
    return Table("Grids", ["voxels", "voxel size (mm)", "files", "modalities"], rows, note=note)


def _registrations(done: Preparation) -> list[Table]:
    """The quality of each registration, the largest motion first; nothing where none was needed."""
    rows = [
        [
            a.subject, display_name(a.modality), f"{r.shift:.2f}", f"{r.rotation:.2f}",
            f"{r.information_before:.3f}", f"{r.information_after:.3f}",
        ]
        for a, r in _by_motion(done)
    ]  # fmt: skip
    head = ["subject", "modality", "moved (mm)", "turned (°)", "information before (bits)", "after (bits)"]
    note = "Mutual information with the scan that stayed; the originals are as they were."
    return [Table("Registered to one grid", head, rows, note=note)] if rows else []


def _by_motion(done: Preparation) -> list[tuple[Aligned, Registration]]:
    made = [(a, a.registration) for a in done.aligned if a.registration]
    return sorted(made, key=lambda item: -item[1].shift)


def _times(values: Iterable[object]) -> str:
    return "×".join(str(v) for v in values)


def _used(done: Preparation) -> set[str]:
    return {entry["subject"] for entries in done.split.values() for entry in entries}


def _groups(done: Preparation) -> list[dict[str, Any]]:
    """Problems by kind, those that leave subjects out first."""
    kinds: dict[str, list[Problem]] = {code: [] for code in PROBLEMS}
    for problem in done.problems:
        kinds[problem.code].append(problem._replace(found=problem.found.replace(f"{done.root}{os.sep}", "")))
    found = [{**PROBLEMS[code]._asdict(), "listed": listed} for code, listed in kinds.items() if listed]
    return sorted(found, key=lambda group: not group["leaves_out"])


def _text(done: Preparation, tables: Sequence[Table]) -> str:
    parts = [f"Preparation of {done.root} (layout {done.layout})", summary(done), *map(to_text, tables)]
    for group in _groups(done):
        effect = "left out" if group["leaves_out"] else "remark"
        lines = [f"{group['title']} ({len(group['listed'])}; {effect}). {group['remedy']}"]
        lines += [f"  {f'{p.subject}: ' if p.subject else ''}{p.found}" for p in group["listed"]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _page(done: Preparation, tables: Sequence[Table]) -> str:
    rows = _rows(done)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("custom.reports", "assets"), autoescape=True)
    return environment.get_template(TEMPLATE).render(
        title=f"Preparation of {done.root.name}",
        folder=f"{done.root}, layout {done.layout}; datalist: {done.datalist}",
        summary=summary(done),
        left_out=done.left_out,
        groups=_groups(done),
        listed=LISTED,
        tables=[Markup(to_html(table)) for table in tables],
        columns=[display_name(m) for m in done.modalities],
        cell=CELL,
        rows=rows,
        checkerboards=[
            {"subject": a.subject, "source": _uri(r.picture.read_bytes())} for a, r in _by_motion(done)[:BOARDS]
        ],
        pictures_note=(
            "Axial slice through the middle of the head, the usual range of intensities from black to white. "
            "Radiological convention: the patient's right is on the left. "
            f"{len(rows)} of {len(done.checked)} subjects: those that are left out first, then some of the others."
        ),
    )


def _rows(done: Preparation) -> list[dict[str, Any]]:
    """Subjects that are left out, then others at equal distances in the list."""
    section = {entry["subject"]: name for name, entries in done.split.items() for entry in entries}
    bad = [s for s in done.checked if s in done.left_out][:SHOWN_SUBJECTS]
    good = [s for s in done.checked if s not in done.left_out]
    room = min(SHOWN_SUBJECTS - len(bad), len(good))
    chosen = bad + [good[i * len(good) // room] for i in range(room)]
    return [
        {
            "subject": subject,
            "bad": subject in done.left_out,
            "said": "; ".join(p.title for p in done.left_out.get(subject, [])) or section.get(subject, ""),
            "cells": [_cell(done.checked[subject].get(m)) for m in done.modalities],
        }
        for subject in chosen
    ]


def _cell(checked: Checked | None) -> dict[str, Any]:
    if checked is None or checked.picture is None:
        fault = None if checked is None else checked.fault
        return {"source": "", "said": "missing" if fault is None else PROBLEMS[fault[0]].title}
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(checked.picture[::-1, ::-1].T)).save(stream, "PNG", optimize=True)
    width, height = (max(1, round(CELL * mm / max(checked.picture_mm))) for mm in checked.picture_mm)
    return {"source": _uri(stream.getvalue()), "width": width, "height": height}


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
