"""Tests of custom.utils.memory."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import torch

from custom.utils import memory
from custom.utils.memory import free_memory, held_memory, peak_memory, reset_peak

CPU = torch.device("cpu")
TAKEN = 64  # MiB
LAG = 2  # MiB: Linux brings the peak up to date after what is held


def test_what_is_taken_is_seen():
    reset_peak(CPU)
    before = held_memory(CPU)
    # fresh pages, which the allocator of a process that has held much would not take
    with mmap.mmap(-1, TAKEN * 2**20) as pages:
        pages.write(bytes(1) * len(pages))
        held = held_memory(CPU)
    assert TAKEN * 0.9 < held - before < TAKEN * 2.5  # the bytes to write may be held, too
    assert peak_memory(CPU) > held - LAG
    reset_peak(CPU)
    assert peak_memory(CPU) < held - LAG
    assert free_memory(CPU) > 1


def test_where_it_cannot_be_told_it_is_nan(tmp_path: Path, monkeypatch) -> None:
    for name in ("MACHINE", "PROCESS"):
        monkeypatch.setattr(memory, name, tmp_path / "gone")
    assert all(math.isnan(read(CPU)) for read in (free_memory, held_memory, peak_memory))
    (tmp_path / "gone").write_text("MemTotal:  100 kB\n")
    assert math.isnan(free_memory(CPU))
