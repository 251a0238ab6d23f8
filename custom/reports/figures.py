"""Figures of an evaluation, after the paper's Figures 4 to 7: slices on black, one grey scale for all.

Volumes are arrays (X, Y, Z) in RAS order with values in [0, 1]. Slices are shown in radiological convention: the
patient's right is on the left of the picture. The figures are drawn without pyplot, so nothing global is touched.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from scipy import ndimage

from custom.evaluation.rows import display_name
from custom.evaluation.slices import axial, sagittal, slice_position

TRUTH_HEADING = "Ground truth"
CONVENTION = "Radiological: R = patient's right, A = front. Grey scale 0 to 1 for all."
_TEXT = "white"
_DIM = "#a8a8a8"
_DPI = 150
_CELL = 1.6  # width of a slice in inches
_CELL_WIDE = 2.2
_GAP = 0.06
_BOX = "#3ddc5a"
_BOX_MARGIN = 2  # voxels
_MAX_BOXES = 4
_LETTERS = 13  # of the note below, in an inch


def translation_grid(
    path: str | os.PathLike[str],
    predictions: Mapping[tuple[str, str], np.ndarray],
    truths: Mapping[str, np.ndarray],
    *,
    sources: Sequence[str] | None = None,
    title: str = "",
    spacing: tuple[float, float] = (1.0, 1.0),
    diagonal: str = "reconstruction",
    lesion: np.ndarray | None = None,
) -> Path:
    """Grid of slices: one row a source, one column a target, the truth last; written as PNG.

    Args:
        path: of the file; its folder is made.
        predictions: slices as shown (rows, columns) by (source, target); missing ones stay empty.
        truths: true slice of each target, in the order of the columns; a target without truth may map to None.
        sources: the rows; default the order of ``truths`` that occur as sources.
        title: shown above, such as the subject.
        spacing: voxel size (mm) along the picture's columns and rows.
        diagonal: what is shown where source and target are the same, for the note below.
        lesion: mask of the lesion in the slice, round which green boxes are drawn.

    Returns:
        ``path``.
    """
    targets = list(truths)
    if sources is None:
        found = {source for source, _ in predictions}
        sources = [m for m in targets if m in found] + sorted(found - set(targets))
    rows = [*sources, None]
    cut = _content([s for s in [*truths.values(), *predictions.values()] if s is not None])
    height = _CELL * _height_by_width(cut, spacing)
    figure, axes = _canvas(len(targets), [height] * len(rows), title, left=1.0)
    for i, source in enumerate(rows):
        for j, target in enumerate(targets):
            image = truths[target] if source is None else predictions.get((source, target))
            _show(axes[i][j], None if image is None else image[cut], spacing[1] / spacing[0])
            if lesion is not None and image is not None:
                _boxes(axes[i][j], lesion[cut])
            if i == 0:
                axes[i][j].set_title(display_name(target), color=_TEXT, fontsize=11, pad=6)
        _row_label(axes[i][0], "Ground\ntruth" if source is None else f"{display_name(source)} →")
    _marker(axes[0][0], "R")
    reconstructed = any(source == target for source, target in predictions)
    note = f" Source = target: {diagonal}." if reconstructed else ""
    return _save(figure, path, CONVENTION + note)


def volume_panel(
    path: str | os.PathLike[str],
    columns: Mapping[str, np.ndarray],
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> Path:
    """Volumes side by side, an axial and a sagittal row; written as PNG.

    Args:
        path: of the file; its folder is made.
        columns: heading → volume (X, Y, Z) in RAS order, values in [0, 1], all of one shape.
        spacing: voxel size in mm.
        title: shown above.

    Returns:
        ``path``.
    """
    x, _, z = slice_position(next(iter(columns.values())) > 0)
    rows = {
        "Axial": ([axial(image, z) for image in columns.values()], (spacing[0], spacing[1])),
        "Sagittal": ([sagittal(image, x) for image in columns.values()], (spacing[1], spacing[2])),
    }
    cuts = [_content(slices) for slices, _ in rows.values()]
    heights = [_CELL_WIDE * _height_by_width(cut, mm) for cut, (_, mm) in zip(cuts, rows.values(), strict=True)]
    figure, axes = _canvas(len(columns), heights, title, cell=_CELL_WIDE, left=0.9)
    for i, (label, (slices, mm)) in enumerate(rows.items()):
        _row_label(axes[i][0], label)
        for j, heading in enumerate(columns):
            _show(axes[i][j], slices[j][cuts[i]], mm[1] / mm[0])
            if i == 0:
                axes[i][j].set_title(heading, color=_TEXT, fontsize=11, pad=6)
    _marker(axes[0][0], "R")
    _marker(axes[1][0], "A")
    return _save(figure, path, CONVENTION)


def method_panel(
    path: str | os.PathLike[str],
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]],
    truth: tuple[np.ndarray, np.ndarray],
    *,
    lesion: tuple[np.ndarray, np.ndarray] | None = None,
    without_error: Sequence[str] = (),
    errors: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "",
    error_range: float = 0.5,
) -> Path:
    """Predictions of several methods beside the truth, after the paper's Figures 4, 5 and 7; written as PNG.

    Rows are an axial and a sagittal slice, each with its absolute errors below; green boxes are round the lesion.

    Args:
        path: of the file; its folder is made.
        columns: heading → axial and sagittal slice as shown, values in [0, 1].
        truth: of the target; the last column.
        lesion: masks of the lesion in both slices.
        without_error: columns such as the source, which is no prediction.
        errors: heading → what is shown below in the place of the absolute error, such as an expected one.
        spacing: voxel size in mm.
        title: shown above.
        error_range: the error that is shown brightest.

    Returns:
        ``path``.
    """
    shown = {**columns, TRUTH_HEADING: truth}
    planes = [("Axial", (spacing[0], spacing[1])), ("Sagittal", (spacing[1], spacing[2]))]
    cuts = [_content([slices[i] for slices in shown.values()]) for i in range(2)]
    heights = [_CELL * _height_by_width(cut, mm) for cut, (_, mm) in zip(cuts, planes, strict=True)]
    figure, axes = _canvas(len(shown), [h for h in heights for _ in range(2)], title, left=0.8, right=0.7)
    artist = None
    for i, (label, mm) in enumerate(planes):
        _row_label(axes[2 * i][0], label)
        _row_label(axes[2 * i + 1][0], "|Error|")
        for j, (heading, slices) in enumerate(shown.items()):
            image, below = axes[2 * i][j], axes[2 * i + 1][j]
            _show(image, slices[i][cuts[i]], mm[1] / mm[0])
            if lesion is not None:
                _boxes(image, lesion[i][cuts[i]])
            if i == 0:
                image.set_title(heading, color=_TEXT, fontsize=9, pad=6)
            if heading in (*without_error, TRUTH_HEADING):
                below.set_axis_off()
                continue
            told = (errors or {}).get(heading)
            error = (np.abs(slices[i] - truth[i]) if told is None else told[i])[cuts[i]]
            artist = _show(below, error, mm[1] / mm[0], cmap="inferno", vmax=error_range)
    _marker(axes[0][0], "R")
    _marker(axes[2][0], "A")
    if artist is not None:
        _colour_bar(figure, artist, axes[1][-1])
    green = " Green: lesion by its label." if lesion is not None else ""
    return _save(figure, path, f"{CONVENTION}{green} Synthetic: all columns but source and ground truth.")


def _content(slices: Sequence[np.ndarray], margin: int = 3) -> tuple[slice, slice]:
    """Box (rows, columns) that holds what any of the slices shows, a margin around it; all of an empty slice."""
    shown = np.any([s > 0 for s in slices], axis=0)
    box = []
    for axis in (1, 0):
        inside = np.flatnonzero(shown.any(axis=axis))
        low, high = (inside[0], inside[-1] + 1) if inside.size else (0, shown.shape[1 - axis])
        box.append(slice(max(int(low) - margin, 0), min(int(high) + margin, shown.shape[1 - axis])))
    return box[0], box[1]


def _height_by_width(cut: tuple[slice, slice], spacing: tuple[float, float]) -> float:
    rows, columns = cut
    return (rows.stop - rows.start) * spacing[1] / ((columns.stop - columns.start) * spacing[0])


def _canvas(
    columns: int,
    heights: Sequence[float],
    title: str,
    *,
    left: float,
    cell: float = _CELL,
    right: float = 0.15,
    bottom: float = 0.4,
) -> tuple[Figure, list[list[Axes]]]:
    """A black figure with a grid of axes, one row for each of the ``heights``; sizes in inches."""
    top = 0.75 if title else 0.4
    width = left + columns * (cell + _GAP) + right
    height = top + sum(h + _GAP for h in heights) + bottom
    figure = Figure(figsize=(width, height), facecolor="black")
    axes, y = [], height - top
    for row in heights:
        y -= row + _GAP
        boxes = [((left + j * (cell + _GAP)) / width, y / height, cell / width, row / height) for j in range(columns)]
        axes.append([figure.add_axes(box) for box in boxes])
    if title:
        figure.text(left / width, 1 - 0.12 / height, title, color=_TEXT, fontsize=12, va="top", ha="left")
    return figure, axes


def _show(
    axes: Axes, image: np.ndarray | None, aspect: float, *, cmap: str = "gray", vmax: float = 1.0
) -> AxesImage | None:
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if image is None:
        axes.text(0.5, 0.5, "not available", color=_DIM, fontsize=9, ha="center", va="center", transform=axes.transAxes)
        return None
    return axes.imshow(image, cmap=cmap, vmin=0.0, vmax=vmax, aspect=aspect, interpolation="bilinear")


def _boxes(axes: Axes, lesion: np.ndarray) -> None:
    """A rectangle round each part of the lesion that is large enough to be seen, the largest ones."""
    parts, _ = ndimage.label(ndimage.binary_dilation(lesion > 0, iterations=_BOX_MARGIN))
    boxes = ndimage.find_objects(parts)
    for rows, columns in sorted(boxes, key=lambda b: (b[0].start - b[0].stop) * (b[1].stop - b[1].start))[:_MAX_BOXES]:
        corner = (columns.start - 0.5, rows.start - 0.5)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_BOX, linewidth=0.8))


def _row_label(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 0.5), (-8, 0), "axes fraction", "offset points", color=_TEXT, fontsize=11, ha="right", va="center"
    )


def _marker(axes: Axes, side: str) -> None:
    """Which side of the patient is on the left of the picture: R(ight) or A(nterior)."""
    axes.text(0.02, 0.98, side, color=_DIM, fontsize=10, ha="left", va="top", transform=axes.transAxes)


def _colour_bar(figure: Figure, artist: AxesImage, axes: Axes) -> None:
    box = axes.get_position()
    bar = figure.colorbar(artist, cax=figure.add_axes((box.x1 + 0.012, box.y0, 0.012, box.height)))
    bar.ax.tick_params(colors=_TEXT, labelsize=8)
    bar.outline.set_visible(False)


def _save(figure: Figure, path: str | os.PathLike[str], note: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = textwrap.fill(note, int(_LETTERS * figure.get_figwidth()))
    figure.text(0.5, 0.06 / figure.get_figheight(), note, color=_DIM, fontsize=8, ha="center", va="bottom")
    figure.savefig(path, dpi=_DPI, facecolor="black")
    return path
