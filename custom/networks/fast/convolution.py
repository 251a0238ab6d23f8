"""Convolutions in the way that is fastest without gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.fast import winograd
from custom.networks.fast.workspace import Workspace, current_workspace

__all__ = [
    "SlabConvolution",
    "channels_last",
    "convolve",
    "folded_kernel",
    "slab_edges",
    "upsample",
    "with_zeros",
]

CHANNELS_LAST = torch.channels_last_3d
# of the transforms of a whole map, which should stay in the cache
SLAB_ELEMENTS = 2**22
# product of the sizes but the last to which PyTorch calls a single volume small
SMALL = 20480


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (B, C, h, w, d) convolved with ``weight`` (O, C, 3, 3, 3), zeros around it: (B, O, h, w, d).

    On a CPU by Winograd's method, where it pays; equal within the rounding of float32. It has no gradients.
    """
    if x.device.type != "cpu":
        return F.conv3d(x, weight, bias, padding=1)
    x = channels_last(x)
    if winograd.pays(x, weight):
        return _convolve_by_tiles(x, weight, bias)
    if len(x) == 1 and _is_small(x):
        return _convolve_planes(with_zeros(x, -1, x.shape[2] + 1), weight, bias)
    return F.conv3d(x, weight, bias, padding=1)


def _convolve_by_tiles(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolution = SlabConvolution.of(x, weight, bias, current_workspace())
    height, size = x.shape[2], x.shape[3:]
    result = torch.empty((len(x), len(weight), height, *size), memory_format=CHANNELS_LAST)
    planes = SLAB_ELEMENTS // (max(weight.shape[:2]) * size.numel())
    for item, out in zip(x.split(1), result.split(1), strict=True):
        for start, stop in convolution.edges(height, planes):
            convolution.write(with_zeros(item, start - 1, stop + 1), out[:, :, start:stop])
    return result


class SlabConvolution(NamedTuple):
    """A convolution that is applied to a map slab by slab.

    Attributes:
        weight: (O, C, k, k, k); channels last in memory where all slabs are convolved with it.
        bias: (O,).
        plane_kernels: for Winograd's method; none for the plain sum.
        memory: for the transforms.
    """

    weight: Tensor
    bias: Tensor | None
    plane_kernels: list[Tensor] | None
    memory: Workspace

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor | None, memory: Workspace) -> SlabConvolution:
        """For slabs of ``x`` (B, C, h, w, d)."""
        if winograd.pays(x, weight):
            return cls(weight, bias, winograd.plane_kernels(weight), memory)
        return cls(weight.contiguous(memory_format=CHANNELS_LAST), bias, None, memory)

    def edges(self, height: int, planes: int) -> list[tuple[int, int]]:
        """Where slabs of about ``planes`` planes start and stop in a map of ``height`` planes."""
        if self.plane_kernels is None:
            return slab_edges(height, planes)
        # what is left of the last tile is a slab of its own
        whole, tile = height // winograd.TILE * winograd.TILE, winograd.TILE
        edges = slab_edges(whole, max(tile, planes // tile * tile))
        return edges if whole == height else [*edges, (whole, height)]

    def write(self, slab: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Convolve ``slab`` (1, C, h + k - 1, w, d), into ``out`` (1, O, h, w, d) or added to it."""
        if self.plane_kernels and out.shape[2] % winograd.TILE == 0:
            winograd.convolve_tiles(slab, self.plane_kernels, self.bias, out, add=add, memory=self.memory)
            return
        result = _convolve_planes(slab, self.weight, self.bias)
        out.add_(result) if add else out.copy_(result)


def slab_edges(height: int, planes: int) -> list[tuple[int, int]]:
    """Where slabs of at most ``planes`` planes start and stop in a map of ``height`` planes."""
    return [(start, min(start + planes, height)) for start in range(0, height, planes)]


def _convolve_planes(slab: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Plain sum for ``slab`` (1, C, h + k - 1, w, d) as (1, O, h, w, d).

    For one small volume PyTorch chooses its own kernel, which takes up to ten times as long; for a batch of them it
    does not: each plane with its neighbours becomes an item of a batch.
    """
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    if slab.device.type != "cpu" or not _is_small(slab):
        return F.conv3d(slab, weight, bias, padding=padding)
    batch = slab.unfold(2, weight.shape[2], 1)[0].permute(1, 0, 4, 2, 3)
    return F.conv3d(channels_last(batch), weight, bias, padding=padding).transpose(0, 2)


def _is_small(x: Tensor) -> bool:
    return x.shape[:4].numel() <= SMALL


def upsample(modules: nn.Sequential, x: Tensor) -> Tensor:
    """``modules``, nearest upsampling by 2 and a 3³ convolution, as one transposed convolution."""
    conv = modules[1]
    assert isinstance(conv, nn.Conv3d)
    return F.conv_transpose3d(x, folded_kernel(conv.weight), conv.bias, stride=2, padding=1)


def folded_kernel(weight: Tensor) -> Tensor:
    """Kernel (in, out, 4, 4, 4) of the transposed convolution that is nearest upsampling, then ``weight``.

    It has 8/27 of the multiplications.
    """
    along = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).to(weight)
    with torch.autocast(weight.device.type, enabled=False):
        kernel = weight.flatten(2) @ torch.kron(torch.kron(along, along), along).T
    return kernel.unflatten(2, (4, 4, 4)).transpose(0, 1)


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels last in memory, by its strides also where there is one channel alone."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def with_zeros(x: Tensor, start: int, stop: int) -> Tensor:
    """The planes from ``start`` to ``stop``; those outside of ``x`` are zeros."""
    lower, upper = max(start, 0), min(stop, x.shape[2])
    slab = x[:, :, lower:upper]
    if (lower, upper) == (start, stop):
        return slab
    return F.pad(slab, (0, 0, 0, 0, lower - start, stop - upper))
