"""Curves of quality against the cost of sampling: points, table, figure, choice of a default; and of reliability."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from custom.reports.render import Cell, Table
from custom.utils.files import atomic_write

__all__ = ["SPADE_ONLY", "Point", "choose_default", "curve_table", "draw_curves", "draw_reliability", "write_points"]

SPADE_ONLY = "MS-SPADE only"
TOLERANCE = 0.05  # dB; far below what can be seen, and below the spread over noise draws
_DPI = 150


class Point(NamedTuple):
    """One translation: subject, pair, model and sampler; its cost from the source on; its quality in the brain.

    Attributes:
        steps: of the sampler; 0 for MS-SPADE alone.
        samples: draws whose images are averaged.
        evaluations: of the denoising network.
        seconds: wall clock.
        psnr: in dB.
        ssim: without unit.
    """

    subject: str
    source: str
    target: str
    model: str
    sampler: str
    steps: int
    samples: int
    evaluations: int
    seconds: float
    psnr: float
    ssim: float


class Mean(NamedTuple):
    """Means of the points of one model, sampler and number of steps."""

    model: str
    sampler: str
    steps: int
    evaluations: int
    seconds: float
    psnr: float
    ssim: float
    n: int


def write_points(path: str | os.PathLike[str], points: Iterable[Point]) -> None:
    """Write a CSV file with a header line, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows([*p[:8], *(f"{value:.6g}" for value in p[8:])] for p in points)


def means(points: Sequence[Point]) -> list[Mean]:
    """One mean for each model, sampler and number of steps, in the order of their appearance."""
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.model, point.sampler, point.steps), []).append(point)
    return [
        Mean(
            *key,
            group[0].evaluations,
            seconds=fmean(p.seconds for p in group),
            psnr=fmean(p.psnr for p in group),
            ssim=fmean(p.ssim for p in group),
            n=len(group),
        )
        for key, group in groups.items()
    ]


def best_choice(points: Sequence[Point]) -> Mean:
    """The mean with the fewest network evaluations of those within the tolerance of the best PSNR."""
    found = means(points)
    best = max(m.psnr for m in found)
    return min((m for m in found if m.psnr >= best - TOLERANCE), key=lambda m: (m.evaluations, -m.psnr))


def choose_default(points: Sequence[Point]) -> str:
    """One sentence: the default that the points speak for."""
    found, choice = means(points), best_choice(points)
    best = max(found, key=lambda m: m.psnr)
    named = (
        f"{choice.model}, {choice.sampler}, {choice.steps} steps" if choice.steps else f"{choice.model}, {SPADE_ONLY}"
    )
    return (
        f"Within {TOLERANCE} dB of the best brain PSNR ({best.psnr:.2f} dB: {best.model}, {best.sampler}, {best.steps} "
        f"steps), the fewest network evaluations: {named} ({choice.psnr:.2f} dB, {choice.evaluations} evaluations)."
    )


def curve_table(points: Sequence[Point]) -> Table:
    """Means over the subjects, one line a model, sampler and number of steps; the choice is bold."""
    choice = best_choice(points)
    rows: list[list[Cell | str]] = [
        [m.model, m.sampler, str(m.steps), str(m.evaluations), f"{m.seconds:.1f}",
         Cell(f"{m.psnr:.2f}", bold=m == choice), f"{m.ssim:.3f}", str(m.n)]
        for m in means(points)
    ]  # fmt: skip
    columns = ["Model", "Sampler", "Steps", "Evaluations", "Seconds", "PSNR (dB)", "SSIM", "n"]
    note = (
        "Brain, the same noise for all. Seconds from the source to the image. Bold: the fewest evaluations within "
        f"{TOLERANCE} dB of the best."
    )
    return Table("Quality against sampler steps", columns, rows, note=note)


def draw_curves(path: str | os.PathLike[str], points: Sequence[Point]) -> Path:
    """PSNR in the brain against network evaluations and against seconds; written as PNG.

    MS-SPADE alone, which needs no evaluation of the denoising network, is a dashed line; a ring marks the choice.

    Args:
        path: of the file; its folder is made.
        points: of all subjects; their means are drawn.

    Returns:
        ``path``.
    """
    found, choice = means(points), best_choice(points)
    several = len({m.model for m in found}) > 1
    figure = Figure(figsize=(10.5, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, cost in zip(axes, ("evaluations", "seconds"), strict=True):
        _draw_panel(axis, found, choice, cost, several=several)
    axes[0].set_ylabel("PSNR in the brain (dB)")
    axes[0].set_xlabel("Evaluations of the denoising network")
    axes[1].set_xlabel("Seconds from the source to the image")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    pairs = sorted({f"{p.subject}: {p.source} to {p.target}" for p in points})
    figure.suptitle(f"Quality against sampling cost, mean over {len(pairs)} validation volumes", fontsize=11)
    target = Path(path)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
    return target


def draw_reliability(path: str | os.PathLike[str], curves: Mapping[int, Sequence[tuple[float, float]]]) -> Path:
    """Observed against expected error, a line for each number of sources; on the diagonal they are equal. A PNG.

    Args:
        path: of the file; its folder is made.
        curves: number of sources → (expected, observed) of each bin.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(4.6, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    top = 1.05 * max(value for bins in curves.values() for pair in bins for value in pair)
    axes.plot([0, top], [0, top], color="0.6", linestyle="--", linewidth=1, label="equal")
    for number, bins in curves.items():
        expected, observed = zip(*bins, strict=True)
        axes.plot(expected, observed, marker="o", markersize=4, label=f"{number} source{'s' * (number > 1)}")
    axes.set_xlabel("Expected absolute error")
    axes.set_ylabel("Observed absolute error")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    target = Path(path)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
    return target


def _draw_panel(axes: Axes, found: Sequence[Mean], choice: Mean, cost: str, *, several: bool) -> None:
    lines: dict[tuple[str, str], list[Mean]] = {}
    for mean in found:
        lines.setdefault((mean.model, mean.sampler), []).append(mean)
    baselines = [line[0] for (_, sampler), line in lines.items() if sampler == SPADE_ONLY]
    for mean in baselines[:1]:
        axes.axhline(mean.psnr, color="0.5", linestyle="--", linewidth=1, label=SPADE_ONLY)
    for (model, sampler), line in lines.items():
        if sampler != SPADE_ONLY:
            label = f"{model}, {sampler}" if several else sampler
            axes.plot([getattr(m, cost) for m in line], [m.psnr for m in line], marker="o", markersize=4, label=label)
    if choice.sampler != SPADE_ONLY:
        axes.plot(getattr(choice, cost), choice.psnr, "o", mfc="none", mec="black", markersize=11, label="the choice")
    if cost == "evaluations":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({m.evaluations for m in found if m.evaluations} or {1})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
