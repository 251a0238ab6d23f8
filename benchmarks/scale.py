"""Cost against the number of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import measured
from custom.inferers import TranslationInferer
from custom.networks import LatentTranslator

__all__ = ["SIZES", "Scaling", "measure_scaling"]

SIZES = ((64, 64, 64), (96, 96, 96), (128, 128, 128), (160, 160, 128), (192, 192, 144))


class Scaling(NamedTuple):
    """Sizes, the network's seconds for each, and the exponent of the power law through them."""

    sizes: list[tuple[int, ...]]
    seconds: list[float]
    exponent: float


def measure_scaling(
    network: LatentTranslator,
    inferer: TranslationInferer,
    device: torch.device,
    sizes: Sequence[tuple[int, ...]] = SIZES,
) -> Scaling:
    """Time the network on volumes of each size; the exponent is the slope of log seconds over log voxels."""
    seconds = []
    for size in sizes:
        image = torch.rand(1, 1, *size, device=device) * 2 - 1
        repeats = 3 if math.prod(size) < 10**6 else 1
        seconds.append(measured(lambda image=image: inferer(image, network), device, repeats=repeats)[1].seconds)
    slope, _ = np.polyfit(np.log([math.prod(size) for size in sizes]), np.log(seconds), 1)
    return Scaling([tuple(size) for size in sizes], seconds, float(slope))
