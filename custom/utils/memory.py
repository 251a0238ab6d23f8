"""Memory of the process and of the machine, or of a GPU where one is used: MiB, NaN where it cannot be told."""

from __future__ import annotations

import math
from pathlib import Path

import torch

__all__ = ["free_memory", "held_memory", "peak_memory", "reset_peak"]

# of Linux; elsewhere memory cannot be told
MACHINE = Path("/proc/meminfo")
PROCESS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


def free_memory(device: torch.device) -> float:
    """What can still be taken on a device."""
    return torch.cuda.mem_get_info(device)[0] / 2**20 if device.type == "cuda" else _read(MACHINE, "MemAvailable")


def held_memory(device: torch.device) -> float:
    """What is held now: on a GPU by the allocator, on a CPU by the whole process."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else _read(PROCESS, "VmRSS")


def peak_memory(device: torch.device) -> float:
    """The most that was held since :func:`reset_peak`, as of :func:`held_memory`."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _read(PROCESS, "VmHWM")


def reset_peak(device: torch.device) -> None:
    """Let the peak start anew from what is held now, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        PEAK_RESET.write_text("5")
    except OSError:
        return


def _read(file: Path, field: str) -> float:
    """A field of one of Linux's files, which give KiB."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:")), math.nan)
