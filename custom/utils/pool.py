"""Work on many files in several processes, of which one that dies does not take the others' results with it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from tqdm import tqdm

__all__ = ["in_processes"]

Result = TypeVar("Result")


def in_processes(
    task: Callable[[Any], Result],
    jobs: Sequence[Any],
    workers: int,
    *,
    lost: Callable[[Any], Result],
    description: str,
    unit: str = "file",
    chunk: int = 1,
    progress: bool = True,
) -> list[Result]:
    """Results of ``task`` for each of the ``jobs``, in order, with a progress bar.

    Args:
        task: of a module; it should not raise.
        jobs: its arguments.
        workers: processes; 1 for this one alone.
        lost: the result for a job whose process was killed.
        description, unit: of the progress bar.
        chunk: jobs that a process is given at once.
        progress: show the bar.
    """
    results: list[Result] = []
    with tqdm(total=len(jobs), desc=description, unit=unit, disable=not progress, dynamic_ncols=True) as bar:
        if workers == 1:
            sources: list[Iterator[Result]] = [map(task, jobs)]
        else:
            # where a process dies, what was not done is done one by one, to see which job it was
            sources = [_together(task, jobs, workers, chunk), _one_by_one(task, jobs, results, lost)]
        for source in sources:
            try:
                for result in source:
                    results.append(result)
                    bar.update()
            except BrokenProcessPool:
                continue
            break
    return results


def _together(task: Callable, jobs: Sequence[Any], workers: int, chunk: int) -> Iterator[Any]:
    # a new interpreter takes seconds to load the libraries
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        try:
            yield from pool.map(task, jobs, chunksize=chunk)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin() -> None:
    torch.set_num_threads(1)  # the only library here with threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the one that waits says it


def _one_by_one(task: Callable, jobs: Sequence[Any], done: Sequence[Any], lost: Callable) -> Iterator[Any]:
    for job in jobs[len(done) :]:
        try:
            yield from _together(task, [job], 1, 1)
        except BrokenProcessPool:
            yield lost(job)
