"""What an evaluation leaves behind: scores and tables, figures, and a progress bar while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather
from tqdm import tqdm

from custom.baselines import brain_mask
from custom.distributed import is_main, rank, world_size
from custom.engines.evaluation import SEGMENTATION, SUBJECT, EvaluationEvents, TranslationEvaluator, unit
from custom.reports import figures, tables
from custom.reports.tables import CEILING, FULL_MODEL, Row


class ScoresHandler:
    """Writes ``per_subject.csv`` subject by subject, and at the end the tables, to the terminal and ``report.txt``.

    In several processes the main one writes: its own subjects as they come, at the end those of all, in the order of
    the data list. ``state.metrics`` and ``state.failures`` are then every process's.

    Args:
        output_dir: folder for both files, made where absent.
        modalities: order of the matrices' rows and columns.

    Raises:
        ValueError: at the end, if no subject could be evaluated.
    """

    def __init__(self, output_dir: str | os.PathLike[str], *, modalities: Sequence[str] = ()) -> None:
        self.output_dir = Path(output_dir)
        self.modalities = tuple(modalities)
        self._results: list[str] = []

    @property
    def csv_path(self) -> Path:
        """The file of scores."""
        return self.output_dir / "per_subject.csv"

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def _start(self, engine: Engine) -> None:
        self._results = []
        if is_main():
            tables.write_rows(self.csv_path, [])

    def _append(self, engine: Engine) -> None:
        subject, rows = engine.state.output[SUBJECT], engine.state.output["rows"]
        if is_main():
            tables.write_rows(self.csv_path, rows, append=True)
        fields, failure = [tables.to_fields(row) for row in rows], engine.state.failures.get(subject)
        # this is also the order of the data list, of which each process has every n-th subject
        self._results.append(json.dumps([engine.state.iteration, rank(), subject, failure, fields]))

    def _gather(self, engine: Engine) -> list[Row]:
        """Rows of all processes; every one must come here."""
        results = sorted(json.loads(result) for result in string_list_all_gather(self._results))
        engine.state.failures = {subject: failure for *_, subject, failure, _ in results if failure is not None}
        rows = [tables.from_fields(fields) for *_, all_fields in results for fields in all_fields]
        if is_main() and world_size() > 1:
            tables.write_rows(self.csv_path, rows)
        return rows

    def _report(self, engine: Engine) -> None:
        rows = self._gather(engine)
        failures = engine.state.failures
        if not rows:
            reasons = "; ".join(f"{subject}: {why}" for subject, why in failures.items()) or "the data list is empty"
            raise ValueError(f"evaluation: no subject could be evaluated ({reasons}).")
        brain = tables.method_table(rows, "brain").get(FULL_MODEL, {})
        engine.state.metrics.update({f"brain_{metric}": summary.mean for metric, summary in brain.items()})
        if not is_main():
            return
        text = tables.format_report(rows, modalities=self.modalities, failures=failures)
        (self.output_dir / "report.txt").write_text(text, encoding="utf-8")
        print(text)
        print(f"Scores: {self.csv_path}")


class FiguresHandler:
    """Draws for the first subjects the grid of all pairs (the paper's Figure 6) and a panel with the error map.

    In several processes the main one draws the first of its own subjects.

    Args:
        output_dir: folder for the PNG files, made where absent.
        modalities: order of rows and columns.
        num_subjects: how many subjects are drawn.
        panel: (source, target) of the panel.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        modalities: Sequence[str],
        num_subjects: int = 1,
        panel: tuple[str, str] = ("t1", "t2"),
    ) -> None:
        self.output_dir = Path(output_dir)
        self.modalities = tuple(modalities)
        self.num_subjects = num_subjects
        self.panel = tuple(panel)
        self._drawn = 0
        self._reset()

    def _reset(self) -> None:
        self._at: tuple[int, int, int] | None = None
        self._slices: dict[tuple[str, str], np.ndarray] = {}
        self._panel_image: np.ndarray | None = None

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, lambda engine: setattr(self, "_drawn", 0))
        engine.add_event_handler(EvaluationEvents.PREDICTION_COMPLETED, self._collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _collect(self, engine: Engine) -> None:
        prediction = engine.state.prediction
        if self._drawn >= self.num_subjects or prediction.method not in (FULL_MODEL, CEILING):
            return
        volume = figures.volume(unit(prediction.image))
        if self._at is None:
            self._at = self._position(engine.state.batch)
        # a copy, since a view would keep the whole volume
        self._slices[prediction.source, prediction.target] = figures.axial(volume, self._at[2]).copy()
        if (prediction.source, prediction.target) == self.panel:
            self._panel_image = volume

    def _position(self, batch: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        image = next(batch[m] for m in self.modalities if m in batch)
        label = batch.get(SEGMENTATION)
        lesion = None if label is None else figures.volume(label) > 0
        return figures.slice_position(figures.volume(brain_mask(image)) > 0, lesion)

    def _draw(self, engine: Engine) -> None:
        if engine.state.output["rows"] and self._slices and self._drawn < self.num_subjects:
            self._drawn += 1
            self._write(engine.state.output[SUBJECT], engine.state.batch)
        self._reset()

    def _write(self, subject: str, batch: Mapping[str, Any]) -> None:
        images = {m: figures.volume(unit(batch[m])) for m in self.modalities if m in batch}
        spacing = figures.spacing_of(next(batch[m] for m in images))
        truths = {m: figures.axial(image, self._at[2]) for m, image in images.items()}
        grid = self.output_dir / f"{subject}_grid.png"
        figures.translation_grid(grid, self._slices, truths, title=subject, spacing=spacing[:2])
        if self._panel_image is not None:
            source, target = self.panel
            figures.comparison_panel(
                self.output_dir / f"{subject}_{source}_to_{target}.png",
                images[source],
                self._panel_image,
                images[target],
                names=self.panel,
                position=self._at,
                spacing=spacing,
                title=subject,
            )


class ProgressHandler:
    """A progress bar over all predictions, with subject, pair and method, and the time left.

    In several processes the main one shows its own share.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._done = 0

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(EvaluationEvents.PREDICTION_COMPLETED, self._step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._subject)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: TranslationEvaluator) -> None:
        self._expected = engine.inferer.count(engine.inferer.modalities)
        self._bar = tqdm(total=self._expected * (engine.state.epoch_length or 0), desc="evaluating", dynamic_ncols=True)

    def _step(self, engine: Engine) -> None:
        prediction = engine.state.prediction
        subject = engine.state.batch[SUBJECT][0]
        self._done += 1
        self._bar.set_postfix_str(
            f"{subject} {prediction.source}->{prediction.target} {prediction.method}", refresh=False
        )
        self._bar.update()

    def _subject(self, engine: Engine) -> None:
        self._bar.total += self._done - self._expected
        self._bar.refresh()
        self._done = 0

    def _close(self, engine: Engine) -> None:
        self._bar.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._bar.close()
        raise error
