"""The folder of an evaluation: one file of results and one of pictures for each subject, so that it can go on.

A subject's results are used again while nothing has changed that they depend on: files, weights, preprocessing,
protocol and settings. ``evaluation.json`` beside them says what the report needs to be written once more.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from custom.evaluation.baselines import DIGESTS_NAME, file_contents
from custom.evaluation.metrics import PROTOCOL
from custom.evaluation.pictures import Pictures
from custom.evaluation.rows import Row, from_fields, to_fields
from custom.utils.arguments import as_bool
from custom.utils.files import atomic_write, require_writable
from custom.utils.identity import FileDigests, digest, identity

__all__ = ["ResultStore", "Results", "Setup", "SubjectResult"]

logger = logging.getLogger(__name__)

FOLDER = "subjects"
SETUP = "evaluation.json"
SUBJECT = "subject"


@dataclass
class SubjectResult:
    """Measurements on one subject.

    Attributes:
        subject: its name.
        rows: scores by prediction and region.
        costs: ``[method, source, target, seconds, evaluations, peak MiB]``.
        uncertainty: ``[source, target, correlation, bins, lesion share]``, see ``custom.evaluation.uncertainty``.
        dice: ``[source, target, structure, of what, Dice]``, see ``custom.evaluation.segmentation``.
        notes: what a reader must know, such as a missing modality.
    """

    subject: str
    rows: list[Row] = field(default_factory=list)
    costs: list[list[Any]] = field(default_factory=list)
    uncertainty: list[list[Any]] = field(default_factory=list)
    dice: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "rows": [to_fields(row) for row in self.rows]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SubjectResult:
        """Read the output of :meth:`to_json`."""
        return cls(**{**content, "rows": [from_fields(fields) for fields in content["rows"]]})


@dataclass
class Setup:
    """Content of a report beside the results.

    Attributes:
        title: its heading.
        modalities: order of rows and columns.
        pairs: tasks (source, target) of the tables and figures shaped as the paper's Table 1 and Figures 4 and 5.
        reference: the method that the others are tested against.
        num_figures: how many subjects are drawn.
        viewer_megabytes: how large the volumes in ``report.html`` may be together.
        settings: what was run: name → value.
        failures: subject → why it is left out.
        notes: what concerns all subjects.
        subjects: those of the data list, in order.
    """

    title: str = "Evaluation"
    modalities: Sequence[str] = ()
    pairs: Sequence[Sequence[str]] = ()
    reference: str = "full model"
    num_figures: int = 2
    viewer_megabytes: float = 40.0
    settings: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)


class Results:
    """The files of an evaluation's folder.

    Args:
        output_dir: the folder.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def save(self, result: SubjectResult, pictures: Pictures | None, fingerprint: str = "") -> None:
        """Write a subject's files; its results come last, so that they stand for both."""
        if pictures is not None:
            pictures.save(self._path(result.subject, "npz"))
        with atomic_write(self._path(result.subject, "json")) as temporary:
            content = {"fingerprint": fingerprint, **result.to_json()}
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def load(self, subject: str, fingerprint: str | None = None) -> SubjectResult | None:
        """A subject's results; None where there are none, or of another ``fingerprint``, or the file is damaged."""
        try:
            content = json.loads(self._path(subject, "json").read_text(encoding="utf-8"))
            found = content.pop("fingerprint")
            return SubjectResult.from_json(content) if fingerprint in (None, found) else None
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("%s: cannot be read (%s) and is made anew.", self._path(subject, "json"), error)
            return None

    def pictures(self, subject: str) -> Pictures | None:
        """A subject's pictures, if it has any here."""
        path = self._path(subject, "npz")
        return Pictures.load(path) if path.is_file() else None

    def save_setup(self, setup: Setup) -> None:
        """Write ``evaluation.json``."""
        with atomic_write(self.output_dir / SETUP) as temporary:
            temporary.write_text(json.dumps(asdict(setup), indent=1) + "\n", encoding="utf-8")

    def load_setup(self) -> Setup:
        """Read ``evaluation.json``.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where it is something else.
        """
        path = self.output_dir / SETUP
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the folder of an evaluation; found no such file. Run one first.")
        try:
            return Setup(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected what an evaluation wrote; found {error}. Run it again.") from error

    def _path(self, subject: str, suffix: str) -> Path:
        # names that a file cannot bear, or that differ only in what is replaced, are told apart by the digest
        safe = re.sub(r"[^\w.-]", "_", subject)
        return self.output_dir / FOLDER / f"{safe if safe == subject else f'{safe}-{digest(subject)[:8]}'}.{suffix}"


class ResultStore(Results):
    """The results of one evaluation, each used again only if it would come out the same.

    Args:
        output_dir: folder of the evaluation.
        network: with its weights.
        preprocessing: of the subjects.
        settings: whatever else a subject's results depend on, such as the inferer.
        resume: whether to use what is there; false for doing everything again.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        network: nn.Module,
        preprocessing: Any,
        settings: Any,
        resume: bool | str = True,
    ) -> None:
        super().__init__(output_dir)
        require_writable(self.output_dir)
        self.resume = as_bool("resume", resume)
        self._identity = identity(network, preprocessing, [PROTOCOL, settings])
        self._digests = FileDigests(self.output_dir / DIGESTS_NAME)

    def fingerprint(self, entry: Mapping[str, Any]) -> str:
        """Changes with anything that the results of the subject ``entry`` depend on."""
        return digest([self._identity, file_contents([entry], self._digests)])

    def known(self, entry: Mapping[str, Any]) -> SubjectResult | None:
        """The results of ``entry`` if they are there and still valid."""
        return self.load(str(entry[SUBJECT]), self.fingerprint(entry)) if self.resume else None
