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

from custom.networks.workspace import Workspace, current_workspace

__all__ = ["forward_alone", "run_blocks", "upsample"]

# on a CPU 16 MB in float32 (64 channels of 192 × 144 voxels: 2 planes): what is larger than 32 MB the C library returns
# to the system when it is freed, and has to fetch anew for the next slab; a GPU prefers few slabs
SLAB_ELEMENTS_CPU = 2**22
SLAB_ELEMENTS_GPU = 2**26
CHANNELS_LAST = torch.channels_last_3d


def forward_alone(x: Tensor) -> bool:
    """Whether ``x`` needs neither gradients nor a record of the modules' operations, so that what is here may run."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling() or x.is_meta
    return not torch.is_grad_enabled() and not recorded


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
    """What ``for block in blocks: x = block(x)`` gives, within rounding.

    Args:
        blocks: those of MONAI's ``Encoder`` or ``Decoder`` without attention, ``SiLU`` allowed between the last
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
            before, current = current, self.block(block, _channels_last(x) if current is None else current, prepare)
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
            return self.convolve(values, block.conv, prepare)
        if isinstance(block, UpSample):
            return self.upsample(values, block.postconv.conv)
        if isinstance(block, AEKLDownsample):
            return self.downsample(values, block.conv.conv)
        if isinstance(block, AEKLResBlock) and isinstance(x, _Map):
            return self.residual(block, x)
        raise TypeError(f"expected a block of MONAI's Encoder or Decoder without attention; found {block}.")

    def residual(self, block: AEKLResBlock, x: _Map) -> _Map:
        """The block's result; where the channels stay it overwrites ``x``."""
        h = self.convolve(x.values, block.conv1.conv, _Normalization.of(block.norm1, x, silu=True))
        into = x.values
        if not isinstance(block.nin_shortcut, nn.Identity):
            into = self.convolve(into, block.nin_shortcut.conv).values
        result = self.convolve(h.values, block.conv2.conv, _Normalization.of(block.norm2, h, silu=True), into=into)
        self.memory.give(h.values)
        return result

    def convolve(
        self, x: Tensor, conv: nn.Conv3d, prepare: _Normalization | None = None, *, into: Tensor | None = None
    ) -> _Map:
        """``conv(prepare(x))`` for a stride of 1, added to ``into`` where given, which is overwritten."""
        result = self._result(x, conv, x.shape[2:]) if into is None else into
        planes, statistics = self._planes(x, max(x.shape[1], conv.out_channels)), _Statistics()
        weight = conv.weight.contiguous(memory_format=CHANNELS_LAST)
        for start, stop, slab in self._slabs(x, planes, conv.kernel_size[0] // 2, prepare):
            part, rows = _convolve_planes(slab, weight, conv.bias), result[:, :, start:stop]
            rows.copy_(part) if into is None else rows.add_(part)
            statistics.add(rows)
        return statistics.of(result)

    def upsample(self, x: Tensor, conv: nn.Conv3d) -> _Map:
        """``conv`` of ``x`` at twice the size, as one transposed convolution."""
        result = self._result(x, conv, [2 * n for n in x.shape[2:]])
        planes, statistics = self._planes(x, 8 * conv.out_channels), _Statistics()
        kernel = _folded(conv.weight)
        for start, stop, slab in self._slabs(x, planes, 1, None):
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
        for start in range(0, height // 2, planes):
            stop = min(start + planes, height // 2)
            there = x[:, :, 2 * start : 2 * stop + 1]
            slab[:, :, : there.shape[2], :width, :depth].copy_(there)
            slab[:, :, there.shape[2] :].zero_()
            rows = result[:, :, start:stop]
            rows.copy_(F.conv3d(slab[:, :, : 2 * (stop - start) + 1], weight, conv.bias, stride=2))
            statistics.add(rows)
        self.memory.give(slab)
        return statistics.of(result)

    def _slabs(
        self, x: Tensor, planes: int, radius: int, prepare: _Normalization | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """``(start, stop, slab)``: prepared planes from ``start - radius`` to ``stop + radius``, zeros outside ``x``.

        A slab is to be used before the next one is asked for.
        """
        height, halo = x.shape[2], 2 * radius
        edges = [(start, min(start + planes, height)) for start in range(0, height, planes)]
        if prepare is None:
            for start, stop in edges:
                yield start, stop, _with_zeros(x, start - radius, stop + radius)
            return
        slab = self.memory.take(x, x.shape[1], (planes + halo, *x.shape[3:]))
        for start, stop in edges:
            if start == 0:
                slab[:, :, :radius].zero_()
                known = radius
            else:  # where the last slab ended this one begins
                kept = slab[:, :, planes : planes + halo]
                slab[:, :, :halo].copy_(kept.clone() if planes < halo else kept)
                known = halo
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


def upsample(modules: nn.Sequential, x: Tensor) -> Tensor:
    """``modules``, nearest upsampling by 2 and a 3³ convolution; one transposed convolution where that is allowed."""
    if not forward_alone(x):
        return modules(x)
    return F.conv_transpose3d(x, _folded(modules[1].weight), modules[1].bias, stride=2, padding=1)


def _folded(weight: Tensor) -> Tensor:
    """Kernel (in, out, 4, 4, 4) of the transposed convolution that is nearest upsampling, then ``weight``."""
    flipped = weight.flip(2, 3, 4)
    kernel = sum(F.pad(flipped, (c, 1 - c, b, 1 - b, a, 1 - a)) for a in range(2) for b in range(2) for c in range(2))
    return kernel.transpose(0, 1)


def _convolve_planes(slab: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with padding but along the planes."""
    size, padding = weight.shape[2], weight.shape[3] // 2
    if slab.shape[1] > 1:
        return F.conv3d(slab, weight, bias, padding=(0, padding, padding))
    # PyTorch has no fast kernel for a few planes of one channel, but for many: a batch of planes with their neighbours
    batch = slab.unfold(2, size, 1)[0].permute(1, 0, 4, 2, 3)
    return F.conv3d(_channels_last(batch), weight, bias, padding=(0, padding, padding)).transpose(0, 2)


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
        means, variances = torch.stack(means), torch.stack(variances)
        mean = (weight * means).sum(dim=0)
        return _Map(values, mean, (weight * (variances + (means - mean).square())).sum(dim=0))


def _channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels last in memory, by its strides also where there is one channel alone."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _with_zeros(x: Tensor, start: int, stop: int) -> Tensor:
    """The planes from ``start`` to ``stop``; those outside of ``x`` are zeros."""
    lower, upper = max(start, 0), min(stop, x.shape[2])
    slab = x[:, :, lower:upper]
    if (lower, upper) == (start, stop):
        return slab
    return F.pad(slab, (0, 0, 0, 0, lower - start, stop - upper))
