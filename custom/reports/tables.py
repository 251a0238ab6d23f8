"""Tables of an evaluation: rows of scores, their file, and their means as text.

One :class:`Row` is one prediction in one region. A table of methods averages over subjects and pairs; a matrix of
pairs averages over subjects and has the shape of the paper's Table 2: rows are sources, columns targets, and the
diagonal is the reconstruction by the autoencoder.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from custom.metrics import METRICS, PROTOCOL, REGIONS, Scores

COPY_SOURCE = "copy-source"
LOOKUP = "intensity lookup"
CEILING = "autoencoder ceiling"
SPADE_ONLY = "MS-SPADE only"
FULL_MODEL = "full model"
METHODS: tuple[str, ...] = (COPY_SOURCE, LOOKUP, CEILING, SPADE_ONLY, FULL_MODEL)

DISPLAY_NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR", "pd": "PD"}
_TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nmse": "NMSE", "mae": "MAE"}
_DECIMALS = {"psnr": 2, "ssim": 4, "nmse": 4, "mae": 4}


class Row(NamedTuple):
    """Scores of one prediction in one region; ``source == target`` is a reconstruction."""

    subject: str
    source: str
    target: str
    method: str
    region: str
    psnr: float
    ssim: float
    nmse: float
    mae: float


class Summary(NamedTuple):
    """Mean and standard deviation (of a sample; NaN for a single value) of ``n`` values."""

    mean: float
    sd: float
    n: int


def rows_of(subject: str, source: str, target: str, method: str, scores: Mapping[str, Scores]) -> list[Row]:
    """Rows of one prediction from its scores by region."""
    return [Row(subject, source, target, method, region, *values) for region, values in scores.items()]


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row], *, append: bool = False) -> None:
    """Write rows to a CSV file with a header line; ``append`` adds to what is there, and the file is closed after."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = not (append and path.is_file())
    with path.open("a" if append else "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(Row._fields)
        writer.writerows(to_fields(row) for row in rows)


def to_fields(row: Row) -> list[str]:
    """A row as the file holds it: scores with six digits."""
    return [*row[:5], *(f"{value:.6g}" for value in row[5:])]


def from_fields(fields: Sequence[str]) -> Row:
    """The row that :func:`to_fields` wrote.

    Raises:
        TypeError: for the wrong number of fields.
        ValueError: for a score that is no number.
    """
    return Row(*fields[:5], *(float(value) for value in fields[5:]))


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read what :func:`write_rows` wrote.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the columns are others, or a score is no number, naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"scores: no file {path}. Run an evaluation first.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != Row._fields:
            raise ValueError(f"{path}: expected the columns {', '.join(Row._fields)}; found {', '.join(header)}.")
        rows = []
        for line in reader:
            try:
                rows.append(from_fields(line))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error
    return rows


def summarize(values: Sequence[float]) -> Summary:
    """Mean ± sd; an infinite value (a perfect PSNR) makes the mean infinite and the sd NaN.

    Raises:
        ValueError: without a value.
    """
    if not values:
        raise ValueError("summary: expected at least one value; found none.")
    if not all(math.isfinite(v) for v in values):
        return Summary(sum(values) / len(values), math.nan, len(values))
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return Summary(statistics.fmean(values), sd, len(values))


def method_table(rows: Iterable[Row], region: str) -> dict[str, dict[str, Summary]]:
    """``{method: {metric: Summary}}`` over subjects and pairs, in the order of :data:`METHODS`, then of appearance."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        if row.region == region:
            by_method.setdefault(row.method, []).append(row)
    ordered = [m for m in METHODS if m in by_method] + [m for m in by_method if m not in METHODS]
    return {m: {k: summarize([getattr(r, k) for r in by_method[m]]) for k in METRICS} for m in ordered}


def pair_matrix(
    rows: Iterable[Row], metric: str, region: str, *, method: str = FULL_MODEL
) -> dict[tuple[str, str], Summary]:
    """``{(source, target): Summary}`` over subjects; the diagonal comes from the autoencoder's reconstruction."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        wanted = CEILING if row.source == row.target else method
        if row.region == region and row.method == wanted:
            values.setdefault((row.source, row.target), []).append(getattr(row, metric))
    return {pair: summarize(v) for pair, v in values.items()}


def format_method_table(rows: Sequence[Row], region: str) -> str:
    """Text table, one line a method; empty where nothing was measured in the region."""
    table = method_table(rows, region)
    if not table:
        return ""
    body = [[m, *(_cell(s[k], k) for k in METRICS), str(s["psnr"].n)] for m, s in table.items()]
    return _align([[region, *(_TITLES[k] for k in METRICS), "n"], *body])


def format_pair_matrix(
    rows: Sequence[Row], metric: str, region: str, *, modalities: Sequence[str] = (), method: str = FULL_MODEL
) -> str:
    """Text table shaped as the paper's Table 2; empty where the method was not measured in the region."""
    matrix = pair_matrix(rows, metric, region, method=method)
    if not any(source != target for source, target in matrix):
        return ""
    names = list(modalities) or list(dict.fromkeys(name for pair in matrix for name in pair))
    head = [f"{_TITLES[metric]}, {region}", *("→ " + display_name(t) for t in names)]
    body = [[display_name(s), *(_cell(matrix.get((s, t)), metric) for t in names)] for s in names]
    return _align([head, *body])


def format_report(
    rows: Sequence[Row], *, modalities: Sequence[str] = (), failures: Mapping[str, str] | None = None
) -> str:
    """The whole report as text: protocol, failures, table of methods by region, matrices of pairs."""
    subjects = list(dict.fromkeys(row.subject for row in rows))
    parts = [textwrap.fill(PROTOCOL, 110), f"Subjects evaluated: {len(subjects)}."]
    if failures:
        parts.append(
            "Subjects left out because they failed:\n" + "\n".join(f"  {s}: {why}" for s, why in failures.items())
        )
    if len(subjects) == 1:
        parts.append("One subject only: the sd is over its pairs and says nothing about other subjects.")
    parts += [format_method_table(rows, region) for region in REGIONS]
    matrices = [
        format_pair_matrix(rows, metric, region, modalities=modalities)
        for region in ("volume", "brain")
        for metric in ("psnr", "ssim", "nmse")
    ]
    if any(matrices):
        parts += ["Full model, source (row) to target (column); diagonal: reconstruction.", *matrices]
    return "\n\n".join(part for part in parts if part) + "\n"


def display_name(modality: str) -> str:
    """How a modality is written in tables and figures: ``t1ce`` → ``T1ce``."""
    return DISPLAY_NAMES.get(modality, modality.upper() if len(modality) <= 5 else modality)


def _cell(summary: Summary | None, metric: str) -> str:
    if summary is None:
        return "-"
    decimals = _DECIMALS[metric]
    sd = "" if math.isnan(summary.sd) else f" ± {summary.sd:.{decimals}f}"
    return f"{summary.mean:.{decimals}f}{sd}"


def _align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)
