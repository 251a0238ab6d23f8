"""Predictions of several models, anybody's, against one set of true images, by the protocol of the evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation
from nibabel.orientations import aff2axcodes
from torch import Tensor
from tqdm import tqdm

from custom.commands.workflows import bundle_workflow
from custom.data.grids import describe_grid
from custom.data.layouts import SEGMENTATION_KEY, SUBJECT_KEY
from custom.data.readers import read_volume
from custom.evaluation import slices
from custom.evaluation.baselines import copy_source
from custom.evaluation.evaluator import NativeGrid, make_reference, unit
from custom.evaluation.pictures import TRUTH, Pictures, Stamp
from custom.evaluation.predictions import Matched, PredictedFile, find_truths, match_predictions
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import COPY_SOURCE, number_of_sources, rows_of
from custom.evaluation.scales import (
    AS_TRUTH,
    AUTO,
    RANGES,
    UNIT,
    Range,
    Truth,
    check_unit,
    decide_range,
    on_scale,
    scale_of,
)
from custom.reports.report import write_report
from custom.reports.tables import task_name
from custom.utils.errors import user_message
from custom.utils.intensity_scales import PERCENTILE
from custom.utils.modalities import ALIASES, canonical

__all__ = ["RANGES", "compare"]

logger = logging.getLogger(__name__)

SAME_PLACE = 1e-2  # mm, or mm a voxel


def compare(
    truth: str | os.PathLike[str],
    predictions: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str] = "output/comparison",
    *,
    pairs: Sequence[Sequence[str]] = (),
    ranges: Mapping[str, Any] | None = None,
    num_figures: int = 2,
    viewer_megabytes: float = 40.0,
) -> Path:
    """Score every prediction that belongs to a true image; write the tables, figures and report of an evaluation.

    Args:
        truth: folder of true images, see ``custom.evaluation.predictions``; a label ``<subject>_seg`` gives lesion
            scores.
        predictions: name of a model → folder of its predictions. The first model is what the others are tested against.
        out: folder for the results.
        pairs: tasks (source, target) to show; by default all.
        ranges: name of a model → how its intensities are to be read, a key of :data:`RANGES` or the two intensities
            that mean 0 and 1; by default ``auto``, one reading for all the files of a model.
        num_figures: how many subjects are drawn.
        viewer_megabytes: how large the volumes in ``report.html`` may be together; 0 for none.

    Returns:
        Path of ``report.html``.

    Raises:
        FileNotFoundError: for a missing folder.
        ValueError: for unknown models or ranges, where intensities can be read in two ways, or if nothing can be
            compared.
    """
    folders = {str(model): Path(folder).expanduser() for model, folder in dict(predictions).items()}
    kinds = _checked_ranges(folders, ranges or {})
    truths = find_truths(Path(truth).expanduser())
    matched = {model: match_predictions(folder, truths) for model, folder in folders.items()}
    files, notes = _tasks(matched, truths)
    known = {m for found in truths.values() for m in found} - {SEGMENTATION_KEY}
    modalities = [*(m for m in ALIASES if m in known), *sorted(known - set(ALIASES))]
    results, preprocessing = Results(out), _preprocessing(modalities)
    setup = Setup(
        "Comparison",
        modalities,
        [list(map(canonical, pair)) for pair in pairs],
        reference=next(iter(folders)),
        num_figures=num_figures,
        viewer_megabytes=viewer_megabytes,
        settings={"truth": str(truth), **{model: str(folder) for model, folder in folders.items()}},
        notes=notes,
    )
    readings = _decided(kinds, truths, files, preprocessing)
    found = []
    for subject in (bar := tqdm([s for s in truths if s in files], desc="comparing", unit="subject")):
        bar.set_postfix_str(subject)
        try:
            result = _score(subject, truths[subject], files[subject], readings, preprocessing, results)
            if result.rows:
                found.append(result)
            else:
                setup.failures[subject] = " ".join(f"{note}." for note in result.notes)
        except Exception as error:
            setup.failures[subject] = user_message(error, default="failed")
            logger.warning("%s: left out of the comparison: %s", subject, setup.failures[subject])
            logger.debug("%s: traceback", subject, exc_info=True)
    setup.subjects = [result.subject for result in found]
    if not found:
        reasons = " ".join(f"{subject}: {why}" for subject, why in setup.failures.items())
        raise ValueError(f"predictions: expected some that can be scored; found none. {reasons}")
    results.save_setup(setup)
    return write_report(results, setup, found)


def _score(
    subject: str,
    truths: Mapping[str, Path],
    files: Sequence[tuple[str, PredictedFile]],
    readings: Mapping[str, _Reading],
    preprocessing: Compose,
    results: Results,
) -> SubjectResult:
    scored = _Subject(subject, truths, preprocessing)
    for model, file in files:
        scored.add(model, file, readings[model])
    scored.copy_sources()
    if scored.result.rows:
        results.save(scored.result, scored.pictures)
    return scored.result


class _Subject:
    """One subject of a comparison: its truths, and the scores and pictures of what is added."""

    def __init__(self, subject: str, files: Mapping[str, Path], preprocessing: Compose) -> None:
        self.files = files
        self.item = preprocessing({SUBJECT_KEY: subject, **{key: str(path) for key, path in files.items()}})
        self.names = [m for m in files if m != SEGMENTATION_KEY]
        self.to_native = NativeGrid(self.item, preprocessing)
        self.result = SubjectResult(subject, notes=self._label_notes())
        self.truths: dict[str, Truth] = {}
        self.pictures: Pictures | None = None

    def range_of(self, model: str, file: PredictedFile) -> str | None:
        """How the intensities of a prediction are to be read; None where it does not tell.

        Raises:
            ValueError: where there are several ways.
        """
        try:
            truth = self._truth(file.target)
            values = _on_grid(read_volume(file.path), truth.image)[0].as_tensor()[0].float()
        except ValueError:  # noted when it is scored
            return None
        try:
            return decide_range(values, truth)
        except ValueError as error:
            raise ValueError(
                f"{file.path}: {error}. Say which with --ranges \"{{'{model}': 'truth'}}\" or another of these."
            ) from error

    def add(self, model: str, file: PredictedFile, reading: _Reading) -> None:
        """Score one prediction; a fault of it is noted and leaves the others alone."""
        truth = self._truth(file.target)
        try:
            image, remarks = _on_grid(read_volume(file.path), truth.image)
            values = image.as_tensor()[0].float()
            if file.recorded and reading.guessed:
                check_unit(values)
                reading = _Reading(UNIT)
            values, read_as = on_scale(values, truth, reading.kind, guessed=reading.guessed)
            scores = truth.reference.score_rescaled(values)
        except ValueError as error:
            self.result.notes.append(
                f"{model}, {task_name(file.source, file.target)} is not scored: {str(error).rstrip('.')}"
            )
            return
        self.result.notes += [f"{model}: {remark}" for remark in (*remarks, *read_as)]
        self.result.rows += rows_of(self.result.subject, file.source, file.target, model, scores)
        self._draw((model, file.source, file.target), values.clamp(0, 1))

    def copy_sources(self) -> None:
        """Score the source in place of each prediction whose source is known."""
        tasks = dict.fromkeys((row.source, row.target) for row in self.result.rows)
        for source, target in tasks:
            if source in self.names and source != target:
                copied = self.to_native(unit(copy_source(self.item[source])), target)
                scores = self._truth(target).reference.score_rescaled(copied)
                self.result.rows += rows_of(self.result.subject, source, target, COPY_SOURCE, scores)
                self._draw((COPY_SOURCE, source, target), copied)

    def _label_notes(self) -> list[str]:
        label = self.item.get(SEGMENTATION_KEY)
        if label is None:
            return ["no label: no lesion scores"]
        return [] if bool((label > 0).any()) else ["the label has no voxel above 0: no lesion scores"]

    def _truth(self, name: str) -> Truth:
        if name not in self.truths:
            image, scaled = read_volume(self.files[name]), self.to_native(unit(self.item[name]), name)
            low, high = scale_of(image.as_tensor()[0], scaled)
            self.truths[name] = Truth(image, make_reference(self.item, name, self.to_native), low, high)
        return self.truths[name]

    def _draw(self, key: tuple[str, str, str], values: Tensor) -> None:
        truth = self._truth(key[2])
        if self.pictures is None:
            self.pictures = self._start_pictures(key[2])
        method, source, target = key
        for name in {source, target} & set(self.names):
            if (TRUTH, name, name) not in self.pictures.slices:
                scaled = self.to_native(unit(self.item[name]), name)
                self.pictures.add((TRUTH, name, name), self._canonical(scaled, truth.image), scroll=True)
        self.pictures.add(key, self._canonical(values, truth.image), scroll=method != COPY_SOURCE)

    def _start_pictures(self, target: str) -> Pictures:
        truth = self._truth(target)
        label = self.item.get(SEGMENTATION_KEY)
        lesion = (
            None if label is None else self._canonical(self.to_native((label > 0).float(), target), truth.image) > 0.5
        )
        brain = self._canonical(truth.brain.float(), truth.image) > 0.5
        turned = _turned(truth.image, "RAS")
        pictures = Pictures(Stamp(slices.slice_position(brain, lesion), slices.spacing_of(turned)))
        if lesion is not None and lesion.any():
            pictures.add_lesion(lesion)
        return pictures

    @staticmethod
    def _canonical(values: Tensor, like: MetaTensor) -> np.ndarray:
        """``values`` (H, W, D) on the grid of ``like``, in RAS order."""
        return slices.volume(_turned(MetaTensor(values[None], affine=like.affine), "RAS"))


class _Reading(NamedTuple):
    """How a model's intensities are read, and whether that was guessed from them; then a file's record goes before."""

    kind: Range
    guessed: bool = False


def _checked_ranges(folders: Mapping[str, Path], ranges: Mapping[str, Any]) -> dict[str, Range]:
    if not folders:
        raise ValueError("predictions: expected a folder for each model, such as {'ours': DIR}; found none.")
    kinds = {model: _range(ranges.get(model, AUTO)) for model in folders}
    if set(ranges) - set(folders) or None in kinds.values() or COPY_SOURCE in folders:
        raise ValueError(
            f"ranges: expected some of the models {', '.join(folders)}, none called {COPY_SOURCE!r}, each with one of "
            f"{', '.join(RANGES)} or the two intensities that mean 0 and 1; found {dict(ranges)}. Correct it."
        )
    return {model: kind for model, kind in kinds.items() if kind is not None}


def _range(given: Any) -> Range | None:
    """A range that was asked for; None for what is none."""
    if isinstance(given, str):
        return given if given in RANGES else None
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(v, int | float) for v in given):
        low, high = map(float, given)
        return (low, high) if low < high else None
    return None


def _decided(
    kinds: Mapping[str, Range],
    truths: Mapping[str, Mapping[str, Path]],
    files: Mapping[str, Sequence[tuple[str, PredictedFile]]],
    preprocessing: Compose,
) -> dict[str, _Reading]:
    """One reading for all the files of a model: that of its first file which tells."""
    readings = {model: _Reading(kind) for model, kind in kinds.items() if kind != AUTO}
    for subject, own in files.items():
        waiting = [(model, file) for model, file in own if model not in readings and not file.recorded]
        if not waiting:
            continue
        try:
            scored = _Subject(subject, truths[subject], preprocessing)
        except Exception:  # the subject is named as left out when its turn comes
            continue
        for model, file in waiting:
            kind = None if model in readings else scored.range_of(model, file)
            if kind is not None:
                readings[model] = _Reading(kind, guessed=True)
    return {model: readings.get(model, _Reading(AS_TRUTH, guessed=True)) for model in kinds}


def _preprocessing(modalities: Sequence[str]) -> Compose:
    """That of ``evaluate.json``, so that truths are treated as there, on the scale of the percentiles."""
    settings = {"modalities": list(modalities), "intensity_scale": PERCENTILE}
    return bundle_workflow("evaluate", settings).parser.get_parsed_content("preprocessing")


def _tasks(
    matched: Mapping[str, Matched], truths: Mapping[str, Mapping[str, Path]]
) -> tuple[dict[str, list[tuple[str, PredictedFile]]], list[str]]:
    """Files by subject with their model, and what is missing."""
    sources: dict[str, set[str]] = {}
    for found in matched.values():
        for file in found.files:
            sources.setdefault(file.target, set()).update({file.source} - {""})
    by_subject: dict[str, list[tuple[str, PredictedFile]]] = {}
    keys: dict[str, set[tuple[str, str, str]]] = {model: set() for model in matched}
    notes = []
    for model, found in matched.items():
        unused: dict[str, list[str]] = {}
        for name, why in found.unmatched.items():
            unused.setdefault(why, []).append(name)
        notes += [f"{model}, {_files(names)}: not used: {why}." for why, names in unused.items()]
        guesses = dict(found.guesses)
        for file in found.files:
            others = sources[file.target]
            if not file.source and len(others) == 1 and number_of_sources(*others) == 1:
                # one source is all that the others' names hold: then it is this one's too
                file = file._replace(source=next(iter(others)))
                guesses.setdefault(f"source taken to be {file.source}, as in the other models' names", []).append(
                    file.path.name
                )
            by_subject.setdefault(file.subject, []).append((model, file))
            keys[model].add(file[:3])
        notes += [f"{model}, {_files(names)}: {guess}." for guess, names in guesses.items()]
    if not by_subject:
        raise ValueError(f"predictions: none belongs to one of the {len(truths)} true subjects ({' '.join(notes)}).")
    for model, own in keys.items():
        absent = sorted(set().union(*keys.values()) - own)
        notes += [f"{model}: no prediction of {task_name(s, t)} for {subject}." for subject, s, t in absent]
    return by_subject, notes


def _files(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files such as {names[0]}"


def _on_grid(prediction: MetaTensor, truth: MetaTensor) -> tuple[MetaTensor, list[str]]:
    """The prediction with the truth's order of axes.

    Raises:
        ValueError: if it has another grid.
    """
    if prediction.ndim != 4 or prediction.shape[0] != 1:
        raise ValueError(f"expected one 3D volume; found the shape {tuple(prediction.shape)}")
    if _same_grid(prediction, truth):
        return prediction, []
    codes = "".join(aff2axcodes(truth.affine.numpy()))
    turned = _turned(prediction, codes)
    if _same_grid(turned, truth):
        return turned, [f"axes brought into the truth's order ({codes})"]
    raise ValueError(
        f"it has another grid than the truth: {_grid(prediction)} instead of {_grid(truth)}. Resample it to the truth"
    )


def _same_grid(one: MetaTensor, other: MetaTensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one.affine, other.affine, atol=SAME_PLACE))


def _turned(image: MetaTensor, codes: str) -> MetaTensor:
    turned = Orientation(axcodes=codes, labels=None)(image)
    assert isinstance(turned, MetaTensor)
    return turned


def _grid(image: MetaTensor) -> str:
    return describe_grid(image.shape[1:], image.affine.numpy())
