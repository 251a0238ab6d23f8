"""Handlers of an evaluation: the report that it leaves behind, and a progress bar while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather
from tqdm import tqdm

from custom.evaluation.evaluator import SUBJECT, EvaluationEvents, TranslationEvaluator
from custom.evaluation.pairwise import PairwiseInferer
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import FULL_MODEL, number_of_sources
from custom.evaluation.statistics import summarize
from custom.reports.report import write_report
from custom.utils.distributed import is_main, rank


class ReportHandler:
    """Writes the report at the end of an evaluation: scores, tables, figures, ``report.txt`` and ``report.html``.

    In several processes the main one writes, in the order of the data list, with the pictures that the others have left
    in the folder. ``state.metrics`` and ``state.failures`` are then every process's.

    Args:
        output_dir: folder for all of it, made where absent.
        modalities: order of rows and columns.
        pairs: tasks (source, target) of the tables and figures by method.
        num_figures: how many subjects are drawn.
        viewer_megabytes: how large the volumes in ``report.html`` may be together; 0 for none.
        settings: what was run, to be said in the report.
        title: of the report.

    Raises:
        ValueError: at the end, if no subject could be evaluated.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        modalities: Sequence[str] = (),
        pairs: Sequence[Sequence[str]] = (),
        num_figures: int = 2,
        viewer_megabytes: float = 40.0,
        settings: Mapping[str, Any] | None = None,
        title: str = "Evaluation",
    ) -> None:
        self.results = Results(output_dir)
        self.setup = Setup(
            title,
            list(modalities),
            [list(pair) for pair in pairs],
            num_figures=num_figures,
            viewer_megabytes=viewer_megabytes,
            settings={name: str(value) for name, value in (settings or {}).items()},
        )
        self._found: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda engine: self._found.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def _keep(self, engine: Engine) -> None:
        result, failure = engine.state.output, engine.state.failures.get(engine.state.output.subject)
        # this is also the order of the data list, of which each process has every n-th subject
        self._found.append(json.dumps([engine.state.iteration, rank(), failure, result.to_json()]))

    def _report(self, engine: Engine) -> None:
        gathered = sorted((json.loads(result) for result in string_list_all_gather(self._found)), key=lambda r: r[:2])
        found = [SubjectResult.from_json(content) for *_, content in gathered]
        failures = {content["subject"]: failure for _, _, failure, content in gathered if failure is not None}
        engine.state.failures = failures
        engine.state.metrics.update(_brain_means(found))
        if not is_main():
            return
        self.setup.failures = failures
        self.setup.subjects = [result.subject for result in found]
        self.results.save_setup(self.setup)
        write_report(self.results, self.setup, found)


def _brain_means(found: Sequence[SubjectResult]) -> dict[str, float]:
    full = (r for result in found for r in result.rows if r.method == FULL_MODEL and r.region == "brain")
    rows = [row for row in full if number_of_sources(row.source) == 1]
    names = ("psnr", "ssim", "nmse", "mae") if rows else ()
    return {f"brain_{name}": summarize([getattr(row, name) for row in rows]).mean for name in names}


class ProgressHandler:
    """A progress bar over all predictions, with subject, pair and method, and the time left.

    In several processes the main one shows its own share.
    """

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
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
        inferer = engine.inferer
        assert isinstance(inferer, PairwiseInferer)
        self._expected = inferer.count(inferer.modalities, engine.network)
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
