"""Tables of what is measured beside image quality: cost, uncertainty, and what a segmentation makes of the images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from custom.evaluation.results import SubjectResult
from custom.evaluation.rows import METHODS
from custom.evaluation.segmentation import OF_LABEL_REAL, OF_LABEL_SYNTHETIC, OF_REAL
from custom.evaluation.statistics import Summary, summarize
from custom.reports.render import Table
from custom.reports.tables import NO_VALUE, task_name

__all__ = ["cost_table", "dice_table", "uncertainty_table"]


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
    """Rank correlation of the error with that of the error map, by pair; None where there is no error map."""
    groups: dict[tuple[str, str], list[float]] = {}
    for result in found:
        for source, target, value in result.uncertainty:
            groups.setdefault((source, target), []).append(value)
    if not groups:
        return None
    body = []
    for pair, values in groups.items():
        known = [v for v in values if not math.isnan(v)]
        body.append([task_name(*pair), _shown(summarize(known), 3) if known else NO_VALUE, str(len(known))])
    note = (
        "Spearman's correlation, over the voxels of the brain, of the absolute error with the one that the "
        "model expects: 1 where it knows how wrong it is, 0 where its error map tells nothing."
    )
    return Table("Error and uncertainty", ["Pair", "Correlation", "subjects"], body, note=note)


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
