"""Tests of custom.utils.distributed in a single process; tests/training/test_multi_process.py has those of several."""

from __future__ import annotations

import time

import pytest
from monai.transforms import Transform

from custom.utils.distributed import JoinedCache


class Read(Transform):
    """Reads an item in 0.2 s, but for 0, which cannot be read."""

    def __init__(self) -> None:
        self.finished: list[int] = []

    def __call__(self, item: int) -> int:
        if item == 0:
            raise ValueError("unreadable")
        time.sleep(0.2)
        self.finished.append(item)
        return item


def test_the_cache_waits_for_its_threads_after_a_fault() -> None:
    """A thread that still reads when the interpreter ends aborts the process."""
    read = Read()
    with pytest.raises(RuntimeError, match="applying transform"):
        JoinedCache([0, 1, 2, 3, 4, 5], read, num_workers=2, progress=False)
    count = len(read.finished)
    assert 1 <= count <= 3
    time.sleep(0.3)
    assert len(read.finished) == count


def test_the_cache_holds_its_items() -> None:
    read = Read()
    cache = JoinedCache([1, 2], read, num_workers=2, progress=False)
    assert sorted(read.finished) == [1, 2]
    assert [cache[0], cache[1]] == [1, 2]
    assert len(read.finished) == 2
    assert JoinedCache([1, 2], read, cache_rate=0.0, progress=False)[1] == 2
