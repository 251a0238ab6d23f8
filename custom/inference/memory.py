"""Whether the sources of a subject fit into memory together."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["check_memory"]

# bytes a voxel: measured 114 of one source, 171 of two, 193 of four; detail transfer holds the features of all of them
FIRST, EACH = 140, 30
MEMORY = Path("/proc/meminfo")


def check_memory(image: torch.Tensor) -> None:
    """Refuse several sources (B, S, H, W, D) that are together more than memory has room for.

    A process that asks for more on a CPU is ended by the system, without a word.

    Raises:
        ValueError: naming the number of sources, and what to do.
    """
    number, voxels, free = image.shape[1], image[:, 0].numel(), _free_bytes(image.device)
    needed = voxels * (FIRST + number * EACH)
    if number < 2 or free is None or needed <= free:
        return
    fitting = int(free / voxels - FIRST) // EACH
    fewer = f"Name {fitting} or fewer" if fitting > 1 else "Translate one alone"
    size = "×".join(map(str, image.shape[2:]))
    raise ValueError(
        f"image: expected sources that fit into the {free / 2**30:.1f} GiB of memory that are free; found {number} of "
        f"{size} voxels, which take about {needed / 2**30:.1f} together. {fewer}, or resample them to larger voxels."
    )


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = MEMORY.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:")), None)
