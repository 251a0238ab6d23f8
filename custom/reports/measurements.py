"""Tables of what is measured beside image quality: cost, uncertainty, and what a segmentation makes of the images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from custom.evaluation.results import SubjectResult
from custom.evaluation.rows import METHODS, number_of_sources
from custom.evaluation.segmentation import OF_LABEL_REAL, OF_LABEL_SYNTHETIC, OF_REAL
from custom.evaluation.statistics import Summary, summarize
from custom.evaluation.uncertainty import ErrorMapScores, ReliabilityBin, reliability
from custom.reports.render import Table
from custom.reports.tables import NO_VALUE, task_name

__all__ = ["cost_table", "dice_table", "reliability_of", "reliability_table", "uncertainty_table"]


def cost_table(found: Sequence[SubjectResult]) -> Table | None:
    """Seconds, network evaluations and peak memory of one translation, by method; None where none was measured."""
    groups: dict[str, list[list]] = {}
    for result in found:
        for method, _, _, *cost in result.costs:
            groups.setdefault(method, []).append(cost)
    if not groups:
        return None
    body = []
    for method in [*(m for m in METHODS if m in groups), *(m for m in groups if m not in METHODS)]:
        seconds, evaluations, memory = zip(*groups[method], strict=True)
        known = [m for m in memory if not math.isnan(m)]
        body.append([
            method,
            _shown(summarize(seconds), 2),
            f"{summarize(evaluations).mean:g}",
            f"{max(known):.0f}" if known else NO_VALUE,
            str(len(seconds)),
        ])  # fmt: skip
    note = (
        "Mean ± sd of one source to one target, encoding and decoding included, reading and scoring not. Memory: what "
        "is allocated on a GPU, or all that the process holds on a CPU. Seconds depend on the machine and its load."
    )
    columns = ["Method", "Seconds", "Network evaluations", "Peak memory (MiB)", "volumes"]
    return Table("Cost of one volume", columns, body, note=note)


def uncertainty_table(found: Sequence[SubjectResult]) -> Table | None:
    """How well error maps tell the error, by pair; None where there is no error map."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in found:
        for source, target, correlation, _, lesion_share in result.uncertainty:
            groups.setdefault((source, target), []).append((correlation, lesion_share))
    if not groups:
        return None
    body = []
    for pair, values in groups.items():
        columns = [[v for v in column if not math.isnan(v)] for column in zip(*values, strict=True)]
        cells = [_shown(summarize(known), 3) if known else NO_VALUE for known in columns]
        body.append([task_name(*pair), *cells, str(len(columns[0]))])
    note = (
        "Spearman's correlation, over the voxels of the brain, of the absolute error with the one that the "
        "model expects: 1 where it knows how wrong it is, 0 where its error map tells nothing. Lesion: share of its "
        "voxels among the 5 % of the brain that are most uncertain; 0.05 where the map knows nothing of lesions."
    )
    columns_ = ["Pair", "Correlation", "Lesion among the 5 %", "subjects"]
    return Table("Error and uncertainty", columns_, body, note=note)


def reliability_of(found: Sequence[SubjectResult]) -> dict[int, tuple[ReliabilityBin, ...]]:
    """Number of sources → expected and observed error of ten bins, the mean over all error maps of so many sources."""
    scores: dict[int, list[ErrorMapScores]] = {}
    for result in found:
        for source, _, correlation, bins, lesion_share in result.uncertainty:
            known = ErrorMapScores(correlation, tuple(ReliabilityBin(*pair) for pair in bins), lesion_share)
            scores.setdefault(number_of_sources(source), []).append(known)
    return {number: reliability(scores[number]) for number in sorted(scores)}


def reliability_table(found: Sequence[SubjectResult]) -> Table | None:
    """Expected and observed error in ten bins of the expected one; None where there is no error map."""
    curves = reliability_of(found)
    if not curves:
        return None
    lines = zip(*curves.values(), strict=True)
    body = [[str(i), *(f"{value:.4f}" for pair in line for value in pair)] for i, line in enumerate(lines, 1)]
    groups = [("", 1), *((f"{number} source{'s' * (number > 1)}", 2) for number in curves)]
    note = (
        "Voxels of the brain in ten equal parts, from the least to the most expected error; mean absolute errors, "
        "where the image's range is 1. The two are equal of a map that is right about how large errors are."
    )
    columns = ["Tenth", *(["Expected", "Observed"] * len(curves))]
    return Table("Reliability of the error map", columns, body, groups, note)


def dice_table(found: Sequence[SubjectResult]) -> Table | None:
    """Dice of a segmentation on real and partly synthetic input, by pair and structure; None where it was not run."""
    groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for result in found:
        for source, target, structure, of_what, value in result.dice:
            groups.setdefault((source, target, structure), {}).setdefault(of_what, []).append(value)
    if not groups:
        return None
    kinds = (OF_REAL, OF_LABEL_REAL, OF_LABEL_SYNTHETIC)
    body = [
        [f"{task_name(source, target)}, {structure}", *_dice_cells(values, kinds)]
        for (source, target, structure), values in groups.items()
    ]
    note = (
        "Mean ± sd of Dice. Synthetic input: the target's real image replaced by its translation, the other inputs "
        "real. Two empty segmentations agree (Dice 1)."
    )
    columns = ["Pair, structure", *(k[0].upper() + k[1:] for k in kinds), "subjects"]
    return Table("Segmentation of real and synthetic images", columns, body, note=note)


def _dice_cells(values: dict[str, list[float]], kinds: Iterable[str]) -> list[str]:
    cells = [_shown(summarize(values[kind]), 3) if kind in values else NO_VALUE for kind in kinds]
    return [*cells, str(max(len(v) for v in values.values()))]


def _shown(summary: Summary, decimals: int) -> str:
    sd = "" if math.isnan(summary.sd) else f" ± {summary.sd:.{decimals}f}"
    return f"{summary.mean:.{decimals}f}{sd}"
