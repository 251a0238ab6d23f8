"""Whether the sources of a subject fit into memory together."""

from __future__ import annotations

import math

import torch

from custom.utils.memory import free_memory

__all__ = ["check_memory"]

# bytes a voxel: measured 114 of one source, 171 of two, 193 of four; detail transfer holds the features of all of them
FIRST, EACH = 140, 30


def check_memory(image: torch.Tensor) -> None:
    """Refuse several sources (B, S, H, W, D) that are together more than memory has room for.

    A process that asks for more on a CPU is ended by the system, without a word.

    Raises:
        ValueError: naming the number of sources, and what to do.
    """
    number, voxels, free = image.shape[1], image[:, 0].numel(), free_memory(image.device)
    needed = voxels * (FIRST + number * EACH) / 2**20
    if number < 2 or math.isnan(free) or needed <= free:
        return
    fitting = int(free * 2**20 / voxels - FIRST) // EACH
    fewer = f"Name {fitting} or fewer" if fitting > 1 else "Translate one alone"
    size = "×".join(map(str, image.shape[2:]))
    raise ValueError(
        f"image: expected sources that fit into the {free / 2**10:.1f} GiB of memory that are free; found {number} of "
        f"{size} voxels, which take about {needed / 2**10:.1f} together. {fewer}, or resample them to larger voxels."
    )
