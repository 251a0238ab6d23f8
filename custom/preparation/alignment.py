"""A subject's modalities on one grid, where a data set has them on several: each is registered to one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from custom.data.layouts import SEGMENTATION_KEY
from custom.preparation.checks import Checked, check_file
from custom.preparation.cohort import Subject, same_grid
from custom.utils.errors import user_message
from custom.utils.pool import in_processes

if TYPE_CHECKING:
    from custom.preparation.registration import Registration

__all__ = ["Aligned", "align"]


class _Job(NamedTuple):
    subject: str
    modality: str
    moving: str
    fixed: str
    suffix: str
    output_dir: str | None


class Aligned(NamedTuple):
    """Outcome for one modality of one subject.

    Attributes:
        subject, modality: whose scan was moved.
        registration: the new file and how well it lies; None where it failed.
        checked: what the new file holds.
        fault: why it failed.
    """

    subject: str
    modality: str
    registration: Registration | None
    checked: Checked | None
    fault: str = ""


def align(
    subjects: Mapping[str, Subject],
    reference: str,
    *,
    workers: int,
    output_dir: str | os.PathLike | None = None,
) -> list[Aligned]:
    """Register every modality that does not lie on the grid of ``reference`` to it; the originals stay as they are.

    Done again, it takes what is there: see :func:`custom.preparation.registration.register`.

    Args:
        subjects: id → modality → checked file.
        reference: the modality whose grid the others are brought to; a subject without it is passed over.
        workers: processes.
        output_dir: for the new files; where not given they lie beside the originals.
    """
    jobs = []
    for subject, files in subjects.items():
        fixed = files.get(reference)
        if fixed is None or fixed.fault:
            continue
        moving = {m: c for m, c in files.items() if m not in (reference, SEGMENTATION_KEY) and not c.fault}
        place = None if output_dir is None else os.path.join(output_dir, subject)
        jobs += [
            _Job(subject, m, c.path, fixed.path, f"_to_{reference.upper()}", place)
            for m, c in moving.items()
            if not same_grid(c, fixed)
        ]
    if not jobs:
        return []
    return in_processes(_align, jobs, workers, lost=_lost, description="registering", unit="scan")


def _align(job: _Job) -> Aligned:
    from custom.preparation.registration import register  # with its figures: only where there is something to register

    try:
        done = register(job.moving, job.fixed, suffix=job.suffix, output_dir=job.output_dir)
    except Exception as error:  # one pair of scans that cannot be registered does not stop the others
        return Aligned(job.subject, job.modality, None, None, user_message(error, default=job.moving))
    return Aligned(job.subject, job.modality, done, check_file(done.image))


def _lost(job: _Job) -> Aligned:
    return Aligned(job.subject, job.modality, None, None, f"{job.moving}: the process that registered it was killed")
