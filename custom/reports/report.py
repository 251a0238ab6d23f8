"""Everything that an evaluation shows, written from its folder: tables, figures, ``report.txt`` and ``report.html``."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from custom.evaluation.metrics import PROTOCOL, REGIONS, RESCALED_REGIONS
from custom.evaluation.pictures import TRUTH, Pictures
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import (
    CEILING,
    COPY_SOURCE,
    EXPECTED_ERROR,
    FULL_MODEL,
    METHODS,
    Row,
    display_name,
    number_of_sources,
    write_rows,
)
from custom.reports import figures, tables
from custom.reports.curves import draw_reliability
from custom.reports.html import write_html
from custom.reports.measurements import cost_table, dice_table, reliability_of, reliability_table, uncertainty_table
from custom.reports.render import Table, to_text, write_table

__all__ = ["Figure", "report", "write_report"]

logger = logging.getLogger(__name__)

SCORES = "per_subject.csv"
FEW_SUBJECTS = 10
MOST_TASKS = 4  # drawn of a subject where nobody has said which
EQUAL = 100  # dB: what differs less differs by rounding
SYNTHETIC = "All images but the ground truth and the source are synthetic."


class Figure(NamedTuple):
    """A picture of the report and what it shows."""

    path: Path
    caption: str


def report(output_dir: str) -> Path:
    """Write the report of an evaluation's or comparison's folder once more, from the results that lie there.

    Args:
        output_dir: the folder.

    Returns:
        Path of ``report.html``.

    Raises:
        FileNotFoundError: where there is no evaluation in the folder.
    """
    results = Results(output_dir)
    setup = results.load_setup()
    found = [results.load(subject) for subject in setup.subjects]
    return write_report(results, setup, [result for result in found if result is not None])


def write_report(results: Results, setup: Setup, found: Sequence[SubjectResult]) -> Path:
    """Write ``per_subject.csv``, tables, figures, ``report.txt`` and ``report.html``; print the text.

    Args:
        results: the folder.
        setup: what to say and show.
        found: the results, in the order of the data list.

    Raises:
        ValueError: if no subject could be evaluated.
    """
    rows = [row for result in found for row in result.rows]
    if not rows:
        reasons = "; ".join(f"{subject}: {why}" for subject, why in setup.failures.items()) or "the data list is empty"
        raise ValueError(f"evaluation: no subject could be evaluated ({reasons}).")
    write_rows(results.output_dir / SCORES, rows)
    made = make_tables(rows, setup, found)
    for name, table in made.items():
        write_table(table, results.output_dir / "tables", name)
    write_table(tables.summary_table(rows), results.output_dir / "tables", "summary", formats=("csv",))
    remarks = make_remarks(rows, setup, found)
    text = format_report(made, remarks, setup)
    (results.output_dir / "report.txt").write_text(text, encoding="utf-8")
    print(text)
    pictures = [*draw_figures(results, setup, found), *_other_figures(results.output_dir)]
    path = write_html(results, setup, found, tables=made, remarks=remarks, figures=pictures)
    print(f"Scores: {results.output_dir / SCORES}\nReport: {path}")
    return path


def make_tables(rows: Sequence[Row], setup: Setup, found: Sequence[SubjectResult]) -> dict[str, Table]:
    """The tables that have content, by the name of their files."""
    everything, single = rows, [row for row in rows if number_of_sources(row.source) == 1]
    evaluated = any(row.method == FULL_MODEL for row in rows)  # whose sets of sources have a table of their own
    rows = single if evaluated else everything
    translated = [m for m in tables.method_order(rows) if m not in METHODS or m == FULL_MODEL]
    made: dict[str, Table | None] = {}
    for region in (*REGIONS, *RESCALED_REGIONS):
        where = region.replace(" ", "_")
        made[f"methods_{where}"] = tables.method_table(rows, region)
        made[f"sources_{where}"] = tables.sources_table(everything, region) if evaluated else None
        if region.endswith("fitted"):
            continue
        made[f"models_{where}"] = tables.model_table(rows, region, pairs=_pairs(setup))
        for method in translated:
            if {(r.source, r.target) for r in rows if r.method == method} <= set(_pairs(setup)):
                continue  # the models' table shows them all
            name = "pairs" if method == FULL_MODEL else "pairs_" + re.sub(r"[^\w.-]", "_", method)
            made[f"{name}_{where}"] = tables.pair_table(single, region, modalities=setup.modalities, method=method)
        made[f"tests_{where}"] = tables.comparison_table(rows, region, setup.reference)
    made["cost"] = cost_table(found)
    made["uncertainty"] = uncertainty_table(found)
    made["reliability"] = reliability_table(found)
    made["segmentation"] = dice_table(found)
    return {name: table for name, table in made.items() if table is not None}


def make_remarks(rows: Sequence[Row], setup: Setup, found: Sequence[SubjectResult]) -> list[str]:
    """Notes that a reader of the numbers needs: who is left out, what is missing, what cannot be averaged."""
    subjects = list(dict.fromkeys(row.subject for row in rows))
    remarks = [f"Subjects evaluated: {len(subjects)}."]
    remarks += [f"Left out, {subject}: {why}" for subject, why in setup.failures.items()]
    remarks += setup.notes
    notes: dict[str, list[str]] = {}
    for result in found:
        for note in result.notes:
            notes.setdefault(note, []).append(result.subject)
    remarks += [f"{_listed(list(dict.fromkeys(names)))}: {note}." for note, names in notes.items()]
    if len(subjects) == 1:
        remarks.append(
            "One subject only: no interval and no test can be given, and the sd is over its pairs: it says nothing "
            "about other subjects."
        )
    elif len(subjects) < FEW_SUBJECTS:
        remarks.append(
            f"{len(subjects)} subjects are few: bootstrap intervals over so few are narrower than they should be."
        )
    perfect = [row for row in rows if row.psnr > EQUAL]
    if perfect:
        first = perfect[0]
        remarks.append(
            f"{len(perfect)} predictions equal the truth in a region but for rounding: their PSNR, infinite or above "
            f"{EQUAL} dB, decides each mean that holds it (the first: {first.subject}, {first.method}, {first.region})."
        )
    return remarks


def format_report(made: Mapping[str, Table], remarks: Sequence[str], setup: Setup) -> str:
    """The report as text, for a terminal; what differs from run to run (the cost) comes last."""
    ordered = [table for name, table in made.items() if name != "cost"] + [made[n] for n in ("cost",) if n in made]
    head = [textwrap.fill(PROTOCOL, 110), "\n".join(textwrap.fill(r, 110, subsequent_indent="  ") for r in remarks)]
    return "\n\n".join([*head, *(to_text(table) for table in ordered)]) + "\n"


def draw_figures(results: Results, setup: Setup, found: Sequence[SubjectResult]) -> Iterator[Figure]:
    """Figures: the error map's reliability; of the first subjects that have pictures all pairs, and the tasks of
    ``setup.pairs`` by method."""
    folder, drawn = results.output_dir / "figures", 0
    if curves := reliability_of(found):
        path = draw_reliability(folder / "reliability.png", curves)
        yield Figure(path, "Expected and observed absolute error, in ten equal parts of the brain's voxels.")
    for result in found:
        if drawn >= setup.num_figures:
            return
        pictures = results.pictures(result.subject)
        if pictures is None:
            continue
        drawn += 1
        name = result.subject.replace("/", "_")
        if any(method == FULL_MODEL for method, _, _ in pictures.slices):
            yield _grid(folder / f"{name}_pairs.png", result.subject, pictures, setup)
        for source, target in _tasks(pictures, setup):
            path = folder / f"{name}_{source or 'any'}_to_{target}.png"
            yield _methods(path, result.subject, pictures, source, target)


def _pairs(setup: Setup) -> list[tuple[str, str]]:
    return [(source, target) for source, target in setup.pairs]


def _tasks(pictures: Pictures, setup: Setup) -> list[tuple[str, str]]:
    """The tasks asked for that the subject has; otherwise its first ones, or its first where others were asked for."""
    known = list(dict.fromkeys(k[1:] for k in pictures.slices if k[0] not in (TRUTH, CEILING)))
    return [pair for pair in _pairs(setup) if pair in known] or known[: 1 if setup.pairs else MOST_TASKS]


def _grid(path: Path, subject: str, pictures: Pictures, setup: Setup) -> Figure:
    predicted = {k[1:]: _floats(s)[0] for k, s in pictures.slices.items() if k[0] in (FULL_MODEL, CEILING)}
    names = [m for m in setup.modalities if (TRUTH, m, m) in pictures.slices]
    truths = {m: _floats(pictures.slices[TRUTH, m, m])[0] for m in names}
    sources = [m for m in names if any(s == m and s != t for s, t in predicted)]
    figures.translation_grid(
        path,
        predicted,
        truths,
        sources=sources,
        title=f"{subject}: source (row) to target (column)",
        spacing=pictures.stamp.spacing[:2],
        lesion=None if pictures.lesion is None else pictures.lesion.axial,
    )
    caption = f"{subject}: every source (row) to every target (column), ground truth last; on the diagonal the "
    return Figure(path, f"{caption}reconstruction by the autoencoder. {SYNTHETIC} {_boxed(pictures)}".strip())


def _methods(path: Path, subject: str, pictures: Pictures, source: str, target: str) -> Figure:
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    methods = [k[0] for k in pictures.slices if k[0] not in (TRUTH, EXPECTED_ERROR) and k[1:] == (source, target)]
    # the copied source is the source: one column shows it, with its error
    copied = COPY_SOURCE in methods
    heading = f"Source {display_name(source)}" + "\n= copy-source" * copied
    if (TRUTH, source, source) in pictures.slices:
        shown[heading] = _floats(pictures.slices[TRUTH, source, source])
    ordered = [m for m in METHODS if m in methods and m != COPY_SOURCE] + [m for m in methods if m not in METHODS]
    shown |= {method: _floats(pictures.slices[method, source, target]) for method in ordered}
    errors = {}
    if (EXPECTED_ERROR, source, target) in pictures.slices:
        shown["full model,\nerror it expects"] = shown[FULL_MODEL]
        errors["full model,\nerror it expects"] = _floats(pictures.slices[EXPECTED_ERROR, source, target])
    if (CEILING, target, target) in pictures.slices:
        shown[CEILING] = _floats(pictures.slices[CEILING, target, target])
    figures.method_panel(
        path,
        shown,
        _floats(pictures.slices[TRUTH, target, target]),
        lesion=pictures.lesion,
        without_error=() if copied else (heading,),
        errors=errors,
        spacing=pictures.stamp.spacing,
        title=f"{subject}, {tables.task_name(source, target)}",
    )
    caption = f"{subject}, {tables.task_name(source, target)}: axial and sagittal, absolute errors below. {SYNTHETIC}"
    return Figure(path, f"{caption} {_boxed(pictures)}".strip())


def _other_figures(output_dir: Path) -> list[Figure]:
    """Pictures that others have put into ``extra/``, such as a curve of quality against steps."""
    return [
        Figure(p, p.stem.replace("_", " ").capitalize() + ".") for p in sorted((output_dir / "extra").glob("*.png"))
    ]


def _boxed(pictures: Pictures) -> str:
    return "" if pictures.lesion is None else "Green boxes: lesion by its label."


def _floats(slices: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    axial, sagittal = slices
    return axial.astype(np.float32) / 255, sagittal.astype(np.float32) / 255


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
