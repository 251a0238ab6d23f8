"""Encoder and decoder of the VQ-GAN without autograd: slab by slab, in little memory and with less arithmetic.

At the full resolution a feature map is large (64 channels of 144 × 192 × 144 voxels: 1 GB), and the plain modules hold
five of them. Here at most two are held whole, in memory that they use in turn: normalisation, activation and
convolution run on slabs of planes, and a residual is added where it lies. The statistics of a group normalisation are
those of the whole volume: every convolution gathers them from its own results. Nearest upsampling and the convolution
behind it are one transposed convolution, with 8/27 of the multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from torch import Tensor, nn

from custom.networks.attention import SelfAttentionBlock
from custom.networks.fast.convolution import (
    CHANNELS_LAST,
    SlabConvolution,
    channels_last,
    folded_kernel,
    slab_edges,
    with_zeros,
)
from custom.networks.fast.workspace import Workspace, current_workspace

__all__ = ["BLOCKS", "run_blocks"]

BLOCKS = (Convolution, UpSample, AEKLDownsample, AEKLResBlock, SelfAttentionBlock, nn.GroupNorm, nn.SiLU)

# on a CPU 16 MB in float32 (64 channels of 192 × 144 voxels: 2 planes): what is larger than 32 MB the C library returns
# to the system when it is freed, and has to fetch anew for the next slab; a GPU prefers few slabs
SLAB_ELEMENTS_CPU = 2**22
SLAB_ELEMENTS_GPU = 2**26


class _Map(NamedTuple):
    """A feature map (1, C, h, w, d), with mean and variance of each of its channels, (C,), in float32."""

    values: Tensor
    mean: Tensor
    variance: Tensor


class _Normalization(NamedTuple):
    """The group normalisation of a whole map as statistics of its channels, and SiLU where wanted, for any planes."""

    norm: nn.GroupNorm
    mean: Tensor
    variance: Tensor
    silu: bool

    @classmethod
    def of(cls, norm: nn.GroupNorm, x: _Map, *, silu: bool) -> _Normalization:
        means, variances = x.mean.view(norm.num_groups, -1), x.variance.view(norm.num_groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(dim=1, keepdim=True)
        return cls(norm, mean.expand_as(means).flatten(), variance.expand_as(means).flatten(), silu)

    def write(self, planes: Tensor, out: Tensor) -> None:
        """Normalise ``planes`` into ``out``."""
        norm, none = self.norm, self.mean.new_empty(0)
        values = (norm.weight, norm.bias, self.mean, self.variance)
        torch.native_batch_norm(planes, *values, False, 0.0, norm.eps, out=(out, none, none))
        if self.silu:
            F.silu(out, inplace=True)


@torch.no_grad()
def run_blocks(blocks: Sequence[nn.Module], x: Tensor, *, slab_elements: int | None = None) -> Tensor:
    """Compute ``for block in blocks: x = block(x)``, equal within rounding.

    Args:
        blocks: those of a ``VQGAN``'s ``Encoder`` or ``Decoder`` (``BLOCKS``), ``SiLU`` allowed between the last
            normalisation and the last convolution.
        x: input (B, C, h, w, d); items are computed one after the other.
        slab_elements: bound on the elements of a slab; a slab has one plane at least. By default what suits the device.

    Raises:
        TypeError: for a block of another kind.
    """
    if slab_elements is None:
        slab_elements = SLAB_ELEMENTS_CPU if x.device.type == "cpu" else SLAB_ELEMENTS_GPU
    run = _Run(current_workspace(), slab_elements)
    results = [run.all(blocks, item) for item in x.split(1)]
    return results[0] if len(results) == 1 else torch.cat(results)


class _Run(NamedTuple):
    """How blocks are run: the memory of their maps and slabs, and the bound on a slab."""

    memory: Workspace
    slab_elements: int

    def all(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        current: _Map | None = None
        prepare: _Normalization | None = None
        for block in blocks:
            if isinstance(block, nn.GroupNorm) and current is not None:
                prepare = _Normalization.of(block, current, silu=False)
                continue
            if isinstance(block, nn.SiLU) and prepare is not None:
                prepare = prepare._replace(silu=True)
                continue
            before, current = current, self.block(block, channels_last(x) if current is None else current, prepare)
            prepare = None
            if before is not None and before.values is not current.values:
                self.memory.give(before.values)
        if current is None:
            return x
        self.memory.give(current.values)
        return current.values.clone()

    def block(self, block: nn.Module, x: Tensor | _Map, prepare: _Normalization | None) -> _Map:
        values = x.values if isinstance(x, _Map) else x
        if isinstance(block, Convolution):
            return self.convolve(values, _conv(block), prepare)
        if isinstance(block, UpSample):
            return self.upsample(values, _conv(block.get_submodule("postconv")))
        if isinstance(block, AEKLDownsample):
            return self.downsample(values, _conv(block.conv))
        if isinstance(block, AEKLResBlock) and isinstance(x, _Map):
            return self.residual(block, x)
        if isinstance(block, SelfAttentionBlock):
            return self.attention(block, values)
        raise TypeError(f"expected a block of MONAI's Encoder or Decoder; found {block}.")

    def residual(self, block: AEKLResBlock, x: _Map) -> _Map:
        """The block's result; where the channels stay it overwrites ``x``."""
        h = self.convolve(x.values, _conv(block.conv1), _Normalization.of(block.norm1, x, silu=True))
        into = x.values
        if not isinstance(block.nin_shortcut, nn.Identity):
            into = self.convolve(into, _conv(block.nin_shortcut)).values
        result = self.convolve(h.values, _conv(block.conv2), _Normalization.of(block.norm2, h, silu=True), into=into)
        self.memory.give(h.values)
        return result

    def attention(self, block: SelfAttentionBlock, x: Tensor) -> _Map:
        """The block's result: every voxel looks at all others, so there are no slabs."""
        result, statistics = self.memory.take(x, x.shape[1], x.shape[2:]), _Statistics()
        result.copy_(block(x.contiguous()))
        statistics.add(result)
        return statistics.of(result)

    def convolve(
        self, x: Tensor, conv: nn.Conv3d, prepare: _Normalization | None = None, *, into: Tensor | None = None
    ) -> _Map:
        """``conv(prepare(x))`` for a stride of 1, added to ``into`` where given, which is overwritten."""
        result = self._result(x, conv, x.shape[2:]) if into is None else into
        convolution, statistics = SlabConvolution.of(x, conv.weight, conv.bias, self.memory), _Statistics()
        edges = convolution.edges(x.shape[2], self._planes(x, max(x.shape[1], conv.out_channels)))
        for start, stop, slab in self._slabs(x, edges, conv.kernel_size[0] // 2, prepare):
            rows = result[:, :, start:stop]
            convolution.write(slab, rows, add=into is not None)
            statistics.add(rows)
        return statistics.of(result)

    def upsample(self, x: Tensor, conv: nn.Conv3d) -> _Map:
        """``conv`` of ``x`` at twice the size, as one transposed convolution."""
        result = self._result(x, conv, [2 * n for n in x.shape[2:]])
        planes, statistics = self._planes(x, 8 * conv.out_channels), _Statistics()
        kernel = folded_kernel(conv.weight)
        for start, stop, slab in self._slabs(x, slab_edges(x.shape[2], planes), 1, None):
            rows = result[:, :, 2 * start : 2 * stop]
            rows.copy_(F.conv_transpose3d(slab, kernel, conv.bias, stride=2, padding=(3, 1, 1)))
            statistics.add(rows)
        return statistics.of(result)

    def downsample(self, x: Tensor, conv: nn.Conv3d) -> _Map:
        """``conv`` with stride 2 on ``x`` with one plane, row and column of zeros behind."""
        _, channels, height, width, depth = x.shape
        result = self._result(x, conv, [n // 2 for n in x.shape[2:]])
        planes, statistics = max(1, self._planes(x, channels) // 2), _Statistics()
        weight = conv.weight.contiguous(memory_format=CHANNELS_LAST)
        slab = self.memory.take(x, channels, (2 * planes + 1, width + 1, depth + 1)).zero_()
        for start, stop in slab_edges(height // 2, planes):
            there = x[:, :, 2 * start : 2 * stop + 1]
            slab[:, :, : there.shape[2], :width, :depth].copy_(there)
            slab[:, :, there.shape[2] :].zero_()
            rows = result[:, :, start:stop]
            rows.copy_(F.conv3d(slab[:, :, : 2 * (stop - start) + 1], weight, conv.bias, stride=2))
            statistics.add(rows)
        self.memory.give(slab)
        return statistics.of(result)

    def _slabs(
        self, x: Tensor, edges: Sequence[tuple[int, int]], radius: int, prepare: _Normalization | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """``(start, stop, slab)``: prepared planes from ``start - radius`` to ``stop + radius``, zeros outside ``x``.

        A slab is to be used before the next one is asked for.
        """
        height, halo = x.shape[2], 2 * radius
        if prepare is None:
            for start, stop in edges:
                yield start, stop, with_zeros(x, start - radius, stop + radius)
            return
        slab = self.memory.take(x, x.shape[1], (max(stop - start for start, stop in edges) + halo, *x.shape[3:]))
        planes = 0
        for start, stop in edges:
            if start == 0:
                slab[:, :, :radius].zero_()
                known = radius
            else:  # where the last slab ended this one begins
                kept = slab[:, :, planes : planes + halo]
                slab[:, :, :halo].copy_(kept.clone() if planes < halo else kept)
                known = halo
            planes = stop - start
            first = start - radius
            end = max(min(stop + radius, height) - first, known)
            prepare.write(x[:, :, first + known : first + end], slab[:, :, known:end])
            slab[:, :, end : stop + radius - first].zero_()
            yield start, stop, slab[:, :, : stop + radius - first]
        self.memory.give(slab)

    def _result(self, x: Tensor, conv: nn.Conv3d, spatial: Sequence[int]) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return self.memory.take(x, conv.out_channels, spatial, dtype)

    def _planes(self, x: Tensor, channels: int) -> int:
        return min(x.shape[2], max(1, self.slab_elements // (channels * x.shape[3] * x.shape[4])))


class _Statistics:
    """Mean and variance of each channel over slabs, merged as in Chan et al. 1979."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        like = rows.new_ones(rows.shape[1], dtype=torch.float32)
        mean, variance = torch.batch_norm_update_stats(rows, torch.zeros_like(like), like, 0.0)
        self.parts.append((rows.shape[2], mean, variance))

    def of(self, values: Tensor) -> _Map:
        sizes, means, variances = zip(*self.parts, strict=True)
        weight = torch.tensor(sizes, dtype=means[0].dtype, device=values.device).unsqueeze(1)
        weight = weight / weight.sum()
        stacked = torch.stack(means)
        mean = (weight * stacked).sum(dim=0)
        return _Map(values, mean, (weight * (torch.stack(variances) + (stacked - mean).square())).sum(dim=0))


def _conv(block: nn.Module) -> nn.Conv3d:
    conv = block.get_submodule("conv")
    assert isinstance(conv, nn.Conv3d)
    return conv
