"""Cost of a prediction: seconds, evaluations of the denoising network, peak memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from custom.utils.memory import peak_memory, reset_peak

__all__ = ["Cost", "Meter"]


class Cost(NamedTuple):
    """Seconds of wall-clock time, evaluations of the UNet, and peak memory in MiB (NaN where it cannot be read).

    The memory is what is allocated on a GPU, or what the whole process holds on a CPU, images and weights included.
    """

    seconds: float = 0.0
    evaluations: int = 0
    memory: float = math.nan

    def plus(self, other: Cost) -> Cost:
        """One after the other: times and evaluations add up, the larger peak counts."""
        peaks = [m for m in (self.memory, other.memory) if not math.isnan(m)]
        return Cost(self.seconds + other.seconds, self.evaluations + other.evaluations, max(peaks, default=math.nan))


class Meter:
    """Measures blocks of code that run a translator on one device.

    Args:
        network: whose ``unet`` is counted; one without has no evaluations.
        device: where it runs.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self.last = Cost()
        self._unet = getattr(network, "unet", None)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run the block; afterwards ``last`` is what it cost."""
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        hook = self._unet.register_forward_pre_hook(count) if isinstance(self._unet, nn.Module) else None
        reset_peak(self.device)
        self._wait()
        started = time.perf_counter()
        try:
            yield
            self._wait()
        finally:
            if hook is not None:
                hook.remove()
        self.last = Cost(time.perf_counter() - started, calls, peak_memory(self.device))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
