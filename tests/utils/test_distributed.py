"""Tests of custom.utils.distributed in a single process; tests/training/test_multi_process.py has those of several."""

from __future__ import annotations

import time

import pytest

from custom.utils.distributed import JoinedCache


def test_the_cache_waits_for_its_threads_after_a_fault() -> None:
    """A thread that still reads when the interpreter ends aborts the process."""
    finished = []

    def read(item: int) -> int:
        if item == 0:
            raise ValueError("unreadable")
        time.sleep(0.2)
        finished.append(item)
        return item

    with pytest.raises((ValueError, RuntimeError)):
        JoinedCache([1, 0, 2, 3, 4, 5], read, num_workers=2, progress=False)
    count = len(finished)
    assert count >= 1
    time.sleep(0.3)
    assert len(finished) == count
    assert JoinedCache([1, 2], read, num_workers=2, progress=False)[:] == [1, 2]
    assert len(JoinedCache([1, 2], read, cache_rate=0.0, progress=False)) == 2
