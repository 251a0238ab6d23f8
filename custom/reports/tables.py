"""Tables of an evaluation: those of the paper, and those that a reader needs beside them.

Means are over subjects and pairs; intervals draw subjects. In a table of pairs rows are sources, columns targets, and
the diagonal is the reconstruction by the autoencoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from custom.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from custom.evaluation.rows import (
    CEILING,
    FULL_MODEL,
    METHODS,
    SPADE_DECODED,
    SPADE_ONLY,
    Row,
    display_name,
    number_of_sources,
)
from custom.evaluation.statistics import LEVEL, Summary, paired_comparisons, summarize
from custom.reports.render import CHECK, Cell, Table

__all__ = [
    "Ablation",
    "ablation_table",
    "comparison_table",
    "method_order",
    "method_table",
    "model_table",
    "pair_table",
    "sources_table",
    "summaries",
    "summary_table",
]

TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "nmse": "NMSE", "mae": "MAE", "sharpness": "Sharpness"}
DECIMALS = {"psnr": 2, "ssim": 3, "nmse": 3, "mae": 3, "sharpness": 2}
PAPER_METRICS = ("psnr", "nmse", "ssim")  # in the order of the paper's columns
ANY_SOURCE = ""  # of a prediction whose source its file's name does not tell
NO_VALUE = "–"
ARROWS = {True: "↑", False: "↓", None: "→ 1"}

Pair = tuple[str, str]
Key = tuple[str, str, str, str]


class Ablation(NamedTuple):
    """One row of the paper's Table 3.

    Attributes:
        name: such as ``"(a)"`` or ``"ours"``.
        diffusion, palette, spade: which parts the model has.
        regularization: of the latent, ``"VQ"`` or ``"KL"``.
        rows: scores of the model, whose method is ``method``.
        method: the full model, or MS-SPADE only.
    """

    name: str
    diffusion: bool
    palette: bool
    spade: bool
    regularization: str
    rows: Sequence[Row]
    method: str = FULL_MODEL


def summaries(rows: Iterable[Row]) -> dict[Key, dict[str, Summary]]:
    """``{(method, source, target, region): {metric: Summary}}`` over subjects."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.source, row.target, row.region), []).append(row)
    return {key: _summarized(group) for key, group in groups.items()}


def summary_table(rows: Iterable[Row]) -> Table:
    """Every mean of every method, pair and region, with all that is known about it, for further use."""
    columns = ["method", "source", "target", "region", "metric", *Summary._fields]
    body = [
        [*key, metric, *(f"{value:.6g}" for value in summary)]
        for key, found in summaries(rows).items()
        for metric, summary in found.items()
    ]
    return Table("Means by method, pair and region", columns, body)


def method_order(rows: Iterable[Row]) -> list[str]:
    """The methods of the rows: those of :data:`METHODS` in its order, then others as they appear."""
    found = dict.fromkeys(row.method for row in rows)
    return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]


def method_table(rows: Sequence[Row], region: str) -> Table | None:
    """One line a method, over all subjects and pairs, with bootstrap intervals; None where nothing was measured."""
    chosen = [row for row in rows if row.region == region]
    if not chosen:
        return None
    body: list[list[Cell | str]] = []
    for method in method_order(chosen):
        found = _summarized([row for row in chosen if row.method == method])
        cells = [_cell(found[m], m, interval=True) for m in METRICS]
        body.append([method, *cells, str(found["psnr"].subjects), str(found["psnr"].n)])
    columns = [f"{region}", *(_headed(m) for m in METRICS), "subjects", "volumes"]
    intervals = f" [{LEVEL:.0%} bootstrap interval, subjects drawn]" if len({r.subject for r in chosen}) > 1 else ""
    note = f"Mean ± sd over subjects and pairs{intervals}."
    if any(row.method == CEILING for row in chosen):
        note += " The autoencoder ceiling is the truth itself, encoded and decoded."
    if any(row.method == SPADE_DECODED for row in chosen):
        note += f" {SPADE_DECODED} is stage 2 by itself; {SPADE_ONLY} has detail transfer, but no diffusion."
    scored = {m: {r[:3] for r in chosen if r.method == m} for m in method_order(chosen) if m != CEILING}
    if len(set(map(frozenset, scored.values()))) > 1:
        note += " Not all lines have the same volumes: compare them by task, or by the paired tests."
    return Table(f"Methods, {region}", columns, body, note=note)


def sources_table(rows: Sequence[Row], region: str) -> Table | None:
    """One line a number of sources and method; None where no sources were translated together there.

    Every method and number has all targets of each subject, so numbers of sources are compared on the same truths.
    """
    chosen = [row for row in rows if row.region == region and row.source != row.target]
    numbers = sorted({number_of_sources(row.source) for row in chosen})
    if numbers in ([], [1]):
        return None
    together = {row.method for row in chosen if number_of_sources(row.source) > 1}
    body: list[list[Cell | str]] = []
    for number in numbers:
        group = [row for row in chosen if number_of_sources(row.source) == number and row.method in together]
        found = {method: _summarized([r for r in group if r.method == method]) for method in method_order(group)}
        best = {m: _best({method: summary[m] for method, summary in found.items()}, m) for m in METRICS}
        for method, summary in found.items():
            cells = [_cell(summary[m], m, bold=method in best[m]) for m in METRICS]
            body.append([str(number), method, *cells, str(summary["psnr"].subjects), str(summary["psnr"].n)])
    columns = ["Sources", region, *(_headed(m) for m in METRICS), "subjects", "volumes"]
    note = (
        "Mean ± sd over subjects, targets and sets of so many sources. The intensity lookup of several sources is the "
        "mean of those of each."
    )
    return Table(f"By number of sources, {region}", columns, body, note=note)


def pair_table(
    rows: Sequence[Row], region: str, *, modalities: Sequence[str] = (), method: str = FULL_MODEL
) -> Table | None:
    """The paper's Tables 2 and D: every source × target pair; None where the method was not measured there.

    The best source of each target is bold; the diagonal is the reconstruction and takes no part.
    """
    found = {
        (source, target): summary
        for (name, source, target, where), summary in summaries(rows).items()
        if where == region and name == (CEILING if source == target else method)
    }
    if not any(source != target for source, target in found):
        return None
    known = list(modalities) or list(dict.fromkeys(sum(found, ())))
    sources = [s for s in [*known, ANY_SOURCE] if any(s == a for a, _ in found)]
    targets = [t for t in known if any(t == b for _, b in found)]
    translated = {pair: summary for pair, summary in found.items() if pair[0] != pair[1]}
    best = {(t, m): _best({s: v[m] for (s, u), v in translated.items() if u == t}, m) for t in targets for m in METRICS}
    body: list[list[Cell | str]] = []
    for source in dict.fromkeys(sources):
        cells = [
            _cell(found.get((source, target), {}).get(m), m, bold=source != target and source in best[target, m])
            for target in targets
            for m in PAPER_METRICS
        ]
        body.append([display_name(source) or "any", *cells])
    groups = [("", 1), *((display_name(target), len(PAPER_METRICS)) for target in targets)]
    columns = ["Source", *(_headed(m, short=True) for _ in targets for m in PAPER_METRICS)]
    note = "Mean ± sd over subjects. Source = target: the autoencoder's reconstruction."
    return Table(f"Source to target, {method}, {region}", columns, body, groups, note, "source of a target")


def model_table(rows: Sequence[Row], region: str, *, pairs: Sequence[Pair] = ()) -> Table | None:
    """The paper's Table 1: one line a model, tasks in groups of columns; the best of each column is bold.

    Args:
        rows: scores.
        region: where.
        pairs: the tasks (source, target); all that occur where none is given.
    """
    found = summaries(row for row in rows if row.region == region and row.source != row.target)
    tasks = [p for p in pairs if any(k[1:3] == tuple(p) for k in found)] or list(dict.fromkeys(k[1:3] for k in found))
    methods = method_order(row for row in rows if any((row.method, *p, region) in found for p in tasks))
    if not methods:
        return None
    body: list[list[Cell | str]] = [[method] for method in methods]
    for task in tasks:
        by_method = {m: found.get((m, *task, region), {}) for m in methods}
        for metric in PAPER_METRICS:
            values = {m: v.get(metric) for m, v in by_method.items()}
            best = _best({m: v for m, v in values.items() if v is not None}, metric)
            for line, method in zip(body, methods, strict=True):
                line.append(_cell(values[method], metric, bold=len(methods) > 1 and method in best))
    counts = sorted({v["psnr"].n for k, v in found.items() if k[1:3] in {tuple(t) for t in tasks}})
    groups = [("", 1), *((task_name(*task), len(PAPER_METRICS)) for task in tasks)]
    columns = ["Model", *(_headed(m, short=True) for _ in tasks for m in PAPER_METRICS)]
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    note = f"Mean ± sd over {number} subject{'s' * (counts[-1] > 1)}."
    return Table(f"Models, {region}", columns, body, groups, note)


def ablation_table(ablations: Sequence[Ablation], pair: Pair, region: str = "volume") -> Table:
    """The paper's Table 3: one line an ablated model, with check marks for the parts that it has.

    Args:
        ablations: in the order of the lines.
        pair: the task (source, target) whose scores are shown; T1 to T2 in the paper.
        region: where.

    Raises:
        ValueError: for an ablation without scores of the pair in the region.
    """
    found: list[dict[str, Summary]] = []
    for ablation in ablations:
        known = summaries(ablation.rows)
        key = (ablation.method, *pair, region)
        if key not in known:
            raise ValueError(
                f"ablation {ablation.name}: expected scores of {ablation.method} for {task_name(*pair)} in the "
                f"{region}; found none. Evaluate it with this source and target."
            )
        found.append(known[key])
    best = {m: _best(dict(enumerate(f[m] for f in found)), m) for m in PAPER_METRICS}
    body: list[list[Cell | str]] = []
    for i, (ablation, scores) in enumerate(zip(ablations, found, strict=True)):
        marks = [CHECK if part else "" for part in (ablation.diffusion, ablation.palette, ablation.spade)]
        cells = [_cell(scores[m], m, bold=i in best[m]) for m in PAPER_METRICS]
        body.append([ablation.name, *marks, ablation.regularization, *cells])
    columns = ["Method", "Diff", "Palette", "SPADE", "Reg-type", *(_headed(m, short=True) for m in PAPER_METRICS)]
    note = f"Mean ± sd over {found[0]['psnr'].n} subjects." if found else ""
    return Table(f"Ablations, {task_name(*pair)}, {region}", columns, body, note=note)


def comparison_table(rows: Sequence[Row], region: str, reference: str) -> Table | None:
    """Paired tests of every method against ``reference``; None where there is nothing to compare, or one subject."""
    nested: dict[str, dict[str, dict[str, dict[Pair, float]]]] = {m: {} for m in METRICS}
    for row in rows:
        if row.region == region and row.method != CEILING:
            for metric in METRICS:
                of_subject = nested[metric].setdefault(row.method, {}).setdefault(row.subject, {})
                of_subject[row.source, row.target] = getattr(row, metric)
    subjects = {subject for scores in nested["psnr"].values() for subject in scores}
    if reference not in nested["psnr"] or len(nested["psnr"]) < 2 or len(subjects) < 2:
        return None
    found = {metric: paired_comparisons(scores, reference) for metric, scores in nested.items()}
    body: list[list[Cell | str]] = []
    for comparisons in zip(*found.values(), strict=True):
        cells = [
            f"{c.difference:+.{DECIMALS[m]}f} ({_p(c.corrected)})" if c.subjects else "no task in common"
            for m, c in zip(METRICS, comparisons, strict=True)
        ]
        body.append([comparisons[0].method, *cells, str(comparisons[0].subjects)])
    note = (
        f"Median difference to {reference} over subjects (Wilcoxon's signed-rank test on the subjects' means "
        "over their pairs, Holm-corrected over the lines of a column). With fewer than 6 subjects p cannot reach 0.05."
    )
    return Table(
        f"Paired tests against {reference}, {region}",
        [region, *(_headed(m) for m in METRICS), "subjects"],
        body,
        note=note,
    )


def task_name(source: str, target: str) -> str:
    """``T1 → T2``; an unknown source is left out."""
    return f"{display_name(source)} → {display_name(target)}".strip()


def _summarized(rows: Sequence[Row]) -> dict[str, Summary]:
    subjects = [row.subject for row in rows]
    return {m: summarize([getattr(row, m) for row in rows], subjects) for m in METRICS}


def _best(found: Mapping, metric: str) -> set:
    """The keys whose mean is the best as it is shown, if there are at least two to choose from."""
    means = {key: round(summary.mean, DECIMALS[metric]) for key, summary in found.items()}
    if len(means) < 2:
        return set()
    if metric not in HIGHER_IS_BETTER:
        nearest = min(abs(mean - 1) for mean in means.values())
        return {key for key, mean in means.items() if abs(mean - 1) == nearest}
    top = (max if HIGHER_IS_BETTER[metric] else min)(means.values())
    return {key for key, mean in means.items() if mean == top}


def _headed(metric: str, *, short: bool = False) -> str:
    title = TITLES[metric].partition(" ")[0] if short else TITLES[metric]
    return f"{title} {ARROWS[HIGHER_IS_BETTER.get(metric)]}"


def _cell(summary: Summary | None, metric: str, *, bold: bool = False, interval: bool = False) -> Cell:
    if summary is None:
        return Cell(NO_VALUE)
    decimals = DECIMALS[metric]
    text = f"{summary.mean:.{decimals}f}"
    if not math.isnan(summary.sd):
        text += f" ± {summary.sd:.{decimals}f}"
    if interval and not math.isnan(summary.low):
        text += f" [{summary.low:.{decimals}f}, {summary.high:.{decimals}f}]"
    return Cell(text, bold)


def _p(value: float) -> str:
    if math.isnan(value):
        return "no test"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
