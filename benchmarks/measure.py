"""Seconds, memory and the machine's own rate of convolution."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from custom.engines.cost import Meter

__all__ = ["Measured", "autocast", "convolution_rate", "machine", "measured"]

Result = TypeVar("Result")

RATE_CHANNELS = (64, 128)
RATE_EDGE = 48
RATE_REPEATS = 3


class Measured(NamedTuple):
    """Seconds of one run, and MiB that it needed beyond what was held before."""

    seconds: float
    memory: float


def measured(part: Callable[[], Result], device: torch.device, *, repeats: int = 1) -> tuple[Result, Measured]:
    """The result of ``part`` and what it cost: the fastest of ``repeats`` runs, and the memory of the first.

    On a GPU the memory is the allocator's peak and the clock waits for the device; on a CPU it is the process's peak
    (VmHWM), which is reset before each run, so it counts what the libraries take too.
    """
    meter = Meter(nn.Identity(), device)
    held = _held(device)
    with meter():
        result = part()
    first, seconds = meter.last, [meter.last.seconds]
    for _ in range(repeats - 1):
        with meter():
            part()
        seconds.append(meter.last.seconds)
    return result, Measured(min(seconds), max(0.0, first.memory - held))


def _held(device: torch.device) -> float:
    """MiB that the process (its allocator on a GPU) holds now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text(encoding="ascii")) if status.is_file() else None
    return int(found[1]) / 2**10 if found else float("nan")


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast, as the inferer does it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@torch.no_grad()
def convolution_rate(device: torch.device, *, amp: bool, edge: int = RATE_EDGE) -> float:
    """The machine's best TFLOP/s over 3³ convolutions of 64 and 128 channels, in either memory format.

    What the network is held against: most of its arithmetic is such convolutions.
    """
    best = 0.0
    dtype = torch.bfloat16 if amp else torch.float32
    for channels in RATE_CHANNELS:
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            conv = nn.Conv3d(channels, channels, 3, padding=1).to(device, dtype, memory_format=memory_format)
            x = torch.randn(1, channels, edge, edge, edge, device=device).to(dtype, memory_format=memory_format)
            conv(x)
            seconds = measured(lambda conv=conv, x=x: conv(x), device, repeats=RATE_REPEATS)[1].seconds
            best = max(best, 2 * 27 * channels**2 * edge**3 / seconds / 1e12)
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor()
