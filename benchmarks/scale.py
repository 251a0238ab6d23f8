"""Cost against the number of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import ConvolutionRate, measured
from custom.inference.inferer import TranslationInferer
from custom.networks import LatentTranslator
from custom.utils.precision import uses_bfloat16

__all__ = ["SIZES", "Scaling", "measure_scaling"]

SIZES = ((64, 64, 64), (96, 96, 96), (128, 128, 128), (160, 160, 128), (192, 192, 144))


class Scaling(NamedTuple):
    """Sizes, the network's seconds and the machine's rate for each, and the exponent of their product's power law."""

    sizes: list[tuple[int, ...]]
    seconds: list[float]
    rates: list[float]
    exponent: float


def measure_scaling(
    network: LatentTranslator,
    inferer: TranslationInferer,
    device: torch.device,
    sizes: Sequence[tuple[int, ...]] = SIZES,
) -> Scaling:
    """Time the network on volumes of each size; the exponent is the slope of log (seconds × rate) over log voxels."""
    rate = ConvolutionRate(device, amp=uses_bfloat16(inferer.amp, device))
    costs = []
    for size in sizes:
        image = torch.rand(1, 1, *size, device=device) * 2 - 1
        _, cost = measured(partial(inferer, image, network), device, rate=rate)
        costs.append(cost)
    work = np.log([cost.seconds * cost.rate for cost in costs])
    slope, _ = np.polyfit(np.log([math.prod(size) for size in sizes]), work, 1)
    return Scaling([tuple(size) for size in sizes], [c.seconds for c in costs], [c.rate for c in costs], float(slope))
