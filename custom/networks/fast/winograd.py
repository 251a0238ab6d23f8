"""3³ convolutions with half of the multiplications: Winograd's minimal filtering along the planes.

Four planes of a result depend on six of the input. Both are polynomials in disguise: at six points, products of 2D
convolutions hold what is needed to interpolate, six where the plain sum takes twelve. Transforms along the planes are
products with small matrices; width, depth and channels stay as they are.

Source: Lavin & Gray 2016 (https://arxiv.org/abs/1509.09308), F(4, 3) in one dimension. The points keep rounding errors
small (Barabasz et al. 2020, https://arxiv.org/abs/1803.10986): about four times those of the plain sum in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom.networks.fast.workspace import Workspace

__all__ = ["TILE", "convolve_tiles", "pays", "plane_kernels"]

TILE = 4
POINTS = (1.0, -1.0, 0.0, 0.5, -2.0)  # and infinity; at 1 all planes of a tile count once, which is where the bias goes
SIZE = len(POINTS) + 1
# measured on two cores with AVX-512; a kernel for fewer than 16 outputs takes the time of one for 16
MIN_CHANNELS = 16
MIN_WORK = 2**24


def _matrices() -> tuple[list[list[float]], ...]:
    """Transforms (SIZE, SIZE) of the input, (SIZE, 3) of the kernel and (TILE, SIZE) of the result."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    data = np.zeros((SIZE, SIZE))
    data[:-1, :-1] = [np.poly(roots)[::-1] for roots in others]
    data[-1] = np.poly(POINTS)[::-1]
    scales = [math.prod(p - q for q in roots) for p, roots in zip(POINTS, others, strict=True)]
    kernel = np.vstack([np.vander(POINTS, 3, increasing=True) / np.array(scales)[:, None], [0, 0, 1]])
    result = np.vstack([np.vander(POINTS, TILE, increasing=True), [0, 0, 0, 1]]).T
    return data.tolist(), kernel.tolist(), result.tolist()


DATA, KERNEL, RESULT = _matrices()


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether ``convolve_tiles`` is the faster way for ``x`` (B, C, h, w, d) and ``weight`` (O, C, k, k, k).

    It needs float32: in bfloat16 the transforms would cost digits. On a GPU libraries choose such methods themselves.
    With few channels or voxels the transforms take longer than the multiplications that they save.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    outputs, inputs = weight.shape[:2]
    work = inputs * max(outputs, MIN_CHANNELS) * x.shape[2:].numel()
    return weight.shape[2:] == (3, 3, 3) and x.shape[2] >= TILE and inputs >= MIN_CHANNELS and work >= MIN_WORK


def plane_kernels(weight: Tensor) -> list[Tensor]:
    """The SIZE kernels (O, C, 3, 3) of the 2D convolutions for ``weight`` (O, C, 3, 3, 3)."""
    last = weight.permute(2, 0, 3, 4, 1).reshape(3, -1)
    shape = (SIZE, weight.shape[0], 3, 3, weight.shape[1])
    return list((last.new_tensor(KERNEL) @ last).view(shape).movedim(-1, 2))


def convolve_tiles(
    slab: Tensor, kernels: Sequence[Tensor], bias: Tensor | None, out: Tensor, *, add: bool, memory: Workspace
) -> None:
    """Convolve ``slab`` into ``out``, or add the result to it.

    Args:
        slab: (1, C, h + 2, w, d), channels last in memory, with the neighbours of the first and the last plane.
        kernels: of ``plane_kernels``.
        bias: (O,).
        out: (1, O, h, w, d), channels last in memory; h divisible by TILE.
        add: whether to add to what ``out`` holds.
        memory: for the transforms.
    """
    size, tiles = slab.shape[3:], out.shape[2] // TILE
    transformed = memory.take(slab, slab.shape[1], (SIZE * tiles, *size))
    products = memory.take(slab, out.shape[1], (SIZE * tiles, *size))
    source, data, product, result = (_rows(x) for x in (slab, transformed, products, out))
    transform, interpolate = slab.new_tensor(DATA), slab.new_tensor(RESULT)
    for tile in range(tiles):
        torch.mm(transform, source[TILE * tile : TILE * tile + SIZE], out=data[tile::tiles])
    images = zip(transformed[0].split(tiles, dim=1), products[0].split(tiles, dim=1), kernels, strict=True)
    for index, (before, after, kernel) in enumerate(images):
        planes = F.conv2d(before.transpose(0, 1), kernel, bias if index == 0 else None, padding=1)
        after.copy_(planes.transpose(0, 1))
    for tile in range(tiles):
        planes = result[TILE * tile : TILE * (tile + 1)]
        if add:
            planes.addmm_(interpolate, product[tile::tiles])
        else:
            torch.mm(interpolate, product[tile::tiles], out=planes)
    memory.give(transformed)
    memory.give(products)


def _rows(x: Tensor) -> Tensor:
    """(1, C, h, w, d), channels last in memory, as h rows."""
    return x[0].movedim(0, -1).flatten(1)
