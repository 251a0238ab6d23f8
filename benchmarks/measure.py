"""Seconds, memory and the machine's own rate of convolution."""

from __future__ import annotations

import gc
import math
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from custom.inference.cost import Meter
from custom.utils.memory import held_memory

__all__ = ["ConvolutionRate", "Measured", "autocast", "machine", "measured", "work_ratio"]

Result = TypeVar("Result")

RATE_CHANNELS = (64, 128)
RATE_EDGE = 48
RATE_REPEATS = 3
# a part that takes less is run again: one short run says more of the moment than of the part
ENOUGH_SECONDS = 1.0
MOST_RUNS = 20


class Measured(NamedTuple):
    """What a part cost.

    Attributes:
        seconds: of one run.
        memory: MiB that it needed beyond what was held before.
        rate: the machine's TFLOP/s of convolution around it.
        peak: MiB in all.
    """

    seconds: float
    memory: float
    rate: float = math.nan
    peak: float = math.nan


def measured(
    part: Callable[[], Result], device: torch.device, *, repeats: int = 1, rate: Callable[[], float] | None = None
) -> tuple[Result, Measured]:
    """The result of ``part`` and what it cost: seconds of its fastest run, memory of the first.

    It runs ``repeats`` times, and again until all runs together have taken a second.

    A machine shared with others changes its speed from one minute to the next: ``rate`` (a ``ConvolutionRate``) is
    measured before and after the part, and the mean belongs to its seconds.

    On a GPU the memory is the allocator's peak and the clock waits for the device; on a CPU it is the process's peak
    (VmHWM), which is reset before each run, so it counts what the libraries take too.
    """
    meter = Meter(nn.Identity(), device)
    before = rate() if rate else math.nan
    gc.collect()  # what dies while the part runs would be taken off its memory
    held = held_memory(device)
    with meter():
        result = part()
    first, seconds = meter.last, [meter.last.seconds]
    while len(seconds) < repeats or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_RUNS):
        with meter():
            part()
        seconds.append(meter.last.seconds)
    around = (before + rate()) / 2 if rate else math.nan
    return result, Measured(min(seconds), max(first.memory - held, 0.0), around, first.memory)


def work_ratio(one: Any, other: Any) -> float:
    """How many times as long ``one`` takes as ``other``, each with ``seconds`` and the ``rate`` around them.

    Seconds times rate is what the machine could have convolved meanwhile: its speed at either time does not count.
    """
    return one.seconds * one.rate / (other.seconds * other.rate)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast, as the inferer does it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class ConvolutionRate:
    """The machine's TFLOP/s of convolution, each time it is called: what the network is held against.

    Most of the network's arithmetic is 3³ convolutions of 64 and 128 channels; the one of them and the memory format
    that are fastest here are chosen at the start.
    """

    def __init__(self, device: torch.device, *, amp: bool, edge: int = RATE_EDGE) -> None:
        self.device = device
        dtype = torch.bfloat16 if amp else torch.float32
        rates = {}
        for channels in RATE_CHANNELS:
            for memory_format in (torch.contiguous_format, torch.channels_last_3d):
                conv = nn.Conv3d(channels, channels, 3, padding=1).to(device, dtype)
                x = torch.randn(1, channels, edge, edge, edge, device=device).to(dtype, memory_format=memory_format)
                conv.weight.data = conv.weight.data.contiguous(memory_format=memory_format)
                rates[self._rate(conv, x)] = conv, x
        self.conv, self.x = rates[max(rates)]

    def __call__(self) -> float:
        return self._rate(self.conv, self.x)

    @torch.no_grad()
    def _rate(self, conv: nn.Conv3d, x: Tensor) -> float:
        """Of the fastest of some runs, after one that is not counted."""
        conv(x)
        seconds = measured(lambda: conv(x), self.device, repeats=RATE_REPEATS)[1].seconds
        return 2 * conv.weight.numel() * x[0, 0].numel() / seconds / 1e12


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
