"""Rows of scores, one a prediction and region, and the file that holds them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from custom.evaluation.metrics import Scores
from custom.utils.files import atomic_write

COPY_SOURCE = "copy-source"
TRAINING_MEAN = "training mean"
LOOKUP = "intensity lookup"
CEILING = "autoencoder ceiling"
SPADE_DECODED = "MS-SPADE decoded"  # stage 2 by itself
SPADE_ONLY = "MS-SPADE only"  # without diffusion, but with detail transfer
FULL_MODEL = "full model"
PAIRED_LOOKUP = "lookup over two sources"
METHODS: tuple[str, ...] = (
    COPY_SOURCE,
    TRAINING_MEAN,
    LOOKUP,
    PAIRED_LOOKUP,
    CEILING,
    SPADE_DECODED,
    SPADE_ONLY,
    FULL_MODEL,
)
OF_THE_STAGES = (CEILING, SPADE_DECODED, SPADE_ONLY)  # what no network of another kind has
EXPECTED_ERROR = "expected error"  # of the full model, in pictures
TOGETHER = "+"  # between the names of sources that are translated together

DISPLAY_NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR", "pd": "PD"}


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
    sharpness: float


def rows_of(subject: str, source: str, target: str, method: str, scores: Mapping[str, Scores]) -> list[Row]:
    """Rows of one prediction from its scores by region."""
    return [Row(subject, source, target, method, region, *values) for region, values in scores.items()]


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write rows to a CSV file with a header line; the file appears whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
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
    names, scores = fields[:5], [float(value) for value in fields[5:]]
    return Row._make([*names, *scores])


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


def number_of_sources(source: str) -> int:
    """Of a row or picture: ``"t1+flair"`` → 2."""
    return source.count(TOGETHER) + 1


def display_name(modality: str) -> str:
    """How a modality, or several together, is written in tables and figures: ``t1ce`` → ``T1ce``."""
    if TOGETHER in modality:
        return " + ".join(map(display_name, modality.split(TOGETHER)))
    return DISPLAY_NAMES.get(modality, modality.upper() if len(modality) <= 5 else modality)
