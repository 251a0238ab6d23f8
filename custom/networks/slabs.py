"""Encoder and decoder of the VQ-GAN without autograd: slab by slab, in little memory and with less arithmetic.

At the full resolution a feature map is large (64 channels of 144 × 192 × 144 voxels: 1 GB), and the plain modules hold
five of them. Here at most two are held whole: normalisation, activation and convolution run on slabs of planes, and a
residual is added where it lies. The statistics of a group normalisation are those of the whole volume: every
convolution gathers them from its own results. Nearest upsampling and the convolution behind it are one transposed
convolution, with 8/27 of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from torch import Tensor, nn

__all__ = ["SLAB_ELEMENTS", "forward_alone", "run_blocks", "upsample"]

SLAB_ELEMENTS = 2**24  # 64 channels of 192 × 144 voxels: 9 planes, 64 MB in float32
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


@torch.no_grad()
def run_blocks(blocks: Sequence[nn.Module], x: Tensor, *, slab_elements: int = SLAB_ELEMENTS) -> Tensor:
    """What ``for block in blocks: x = block(x)`` gives, within rounding.

    Args:
        blocks: those of MONAI's ``Encoder`` or ``Decoder`` without attention, ``SiLU`` allowed between the last
            normalisation and the last convolution.
        x: input (B, C, h, w, d); items are computed one after the other.
        slab_elements: bound on the elements of a slab; a slab has one plane at least.

    Raises:
        TypeError: for a block of another kind.
    """
    return torch.cat([_run(list(blocks), item, slab_elements) for item in x.split(1)])


def _run(blocks: list[nn.Module], x: Tensor, slab_elements: int) -> Tensor:
    prepare = _channels_last
    current: _Map | None = None
    for block in blocks:
        source = x if current is None else current.values
        if isinstance(block, nn.GroupNorm) and current is not None:
            prepare = _normalization(block, current)
        elif isinstance(block, nn.SiLU) and prepare is not _unchanged:
            prepare = _then_silu(prepare)
        elif isinstance(block, Convolution):
            current, prepare = _convolve(source, block.conv, prepare, slab_elements), _unchanged
        elif isinstance(block, UpSample):
            current = _upsample(source, block.postconv.conv, slab_elements)
        elif isinstance(block, AEKLDownsample):
            current = _downsample(source, block.conv.conv, slab_elements)
        elif isinstance(block, AEKLResBlock) and current is not None:
            current = _residual(block, current, slab_elements)
        else:
            raise TypeError(f"expected a block of MONAI's Encoder or Decoder without attention; found {block}.")
    return x if current is None else current.values


def _residual(block: AEKLResBlock, x: _Map, slab_elements: int) -> _Map:
    """The block's result; where the channels stay it overwrites ``x``."""
    h = _convolve(x.values, block.conv1.conv, _then_silu(_normalization(block.norm1, x)), slab_elements)
    into = x.values
    if not isinstance(block.nin_shortcut, nn.Identity):
        into = _convolve(into, block.nin_shortcut.conv, _unchanged, slab_elements).values
    prepare = _then_silu(_normalization(block.norm2, h))
    return _convolve(h.values, block.conv2.conv, prepare, slab_elements, into=into)


def _convolve(
    x: Tensor, conv: nn.Conv3d, prepare: Callable[[Tensor], Tensor], slab_elements: int, *, into: Tensor | None = None
) -> _Map:
    """``conv(prepare(x))`` for a stride of 1, added to ``into`` where given, which is overwritten."""
    radius, height = conv.kernel_size[0] // 2, x.shape[2]
    result, statistics = into, _Statistics()
    planes = _planes(slab_elements, max(x.shape[1], conv.out_channels), x)
    for start in range(0, height, planes):
        stop = min(start + planes, height)
        slab = _with_halo(x, start - radius, stop + radius, prepare)
        part = F.conv3d(slab, conv.weight, conv.bias, padding=(0, radius, radius))
        if result is None:
            result = _empty(part, height)
        rows = result[:, :, start:stop]
        rows.copy_(part) if into is None else rows.add_(part)
        statistics.add(rows)
    return statistics.of(result)


def _upsample(x: Tensor, conv: nn.Conv3d, slab_elements: int) -> _Map:
    """``conv`` of ``x`` at twice the size, as one transposed convolution."""
    kernel, height = _folded(conv.weight), x.shape[2]
    result, statistics = None, _Statistics()
    planes = _planes(slab_elements, 8 * conv.out_channels, x)
    for start in range(0, height, planes):
        stop = min(start + planes, height)
        slab = _with_halo(x, start - 1, stop + 1, _unchanged)
        part = F.conv_transpose3d(slab, kernel, conv.bias, stride=2, padding=(3, 1, 1))
        if result is None:
            result = _empty(part, 2 * height)
        rows = result[:, :, 2 * start : 2 * stop]
        rows.copy_(part)
        statistics.add(rows)
    return statistics.of(result)


def upsample(modules: nn.Sequential, x: Tensor) -> Tensor:
    """``modules``, nearest upsampling by 2 and a 3³ convolution; one transposed convolution where that is allowed."""
    if not forward_alone(x):
        return modules(x)
    return F.conv_transpose3d(x, _folded(modules[1].weight), modules[1].bias, stride=2, padding=1)


def _downsample(x: Tensor, conv: nn.Conv3d, slab_elements: int) -> _Map:
    """``conv`` with stride 2 on ``x`` with one plane, row and column of zeros behind."""
    height = x.shape[2] // 2
    result, statistics = None, _Statistics()
    planes = max(1, _planes(slab_elements, x.shape[1], x) // 2)
    for start in range(0, height, planes):
        stop = min(start + planes, height)
        slab = F.pad(_with_halo(x, 2 * start, 2 * stop + 1, _unchanged), (0, 1, 0, 1))
        part = F.conv3d(slab, conv.weight, conv.bias, stride=2)
        if result is None:
            result = _empty(part, height)
        rows = result[:, :, start:stop]
        rows.copy_(part)
        statistics.add(rows)
    return statistics.of(result)


def _folded(weight: Tensor) -> Tensor:
    """Kernel (in, out, 4, 4, 4) of the transposed convolution that is nearest upsampling, then ``weight``."""
    flipped = weight.flip(2, 3, 4)
    kernel = sum(F.pad(flipped, (c, 1 - c, b, 1 - b, a, 1 - a)) for a in range(2) for b in range(2) for c in range(2))
    return kernel.transpose(0, 1)


class _Statistics:
    """Mean and variance of each channel over slabs, merged as in Chan et al. 1979."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        like = rows.new_ones(rows.shape[1], dtype=torch.float32)
        mean, variance = torch.batch_norm_update_stats(rows, torch.zeros_like(like), like, 0.0)
        self.parts.append((rows.shape[2], mean, variance))

    def of(self, values: Tensor | None) -> _Map:
        assert values is not None, "a map without planes"
        sizes, means, variances = zip(*self.parts, strict=True)
        weight = torch.tensor(sizes, dtype=means[0].dtype, device=values.device).unsqueeze(1)
        weight = weight / weight.sum()
        means, variances = torch.stack(means), torch.stack(variances)
        mean = (weight * means).sum(dim=0)
        return _Map(values, mean, (weight * (variances + (means - mean).square())).sum(dim=0))


def _normalization(norm: nn.GroupNorm, x: _Map) -> Callable[[Tensor], Tensor]:
    """The group normalisation of the whole map ``x`` as a function of its slabs."""
    means, variances = x.mean.view(norm.num_groups, -1), x.variance.view(norm.num_groups, -1)
    mean = means.mean(dim=1, keepdim=True)
    variance = (variances + (means - mean).square()).mean(dim=1, keepdim=True)
    mean, variance = (t.expand_as(means).flatten() for t in (mean, variance))
    return lambda slab: F.batch_norm(slab, mean, variance, norm.weight, norm.bias, eps=norm.eps)


def _then_silu(prepare: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``prepare``, which must return new memory, and SiLU in place."""
    return lambda slab: F.silu(prepare(slab), inplace=True)


def _unchanged(slab: Tensor) -> Tensor:
    return slab


def _channels_last(slab: Tensor) -> Tensor:
    """``slab`` with its channels last in memory, by its strides also where there is one channel alone."""
    return slab.movedim(1, -1).contiguous().movedim(-1, 1)


def _with_halo(x: Tensor, start: int, stop: int, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """``prepare`` of the planes from ``start`` to ``stop``; those outside of ``x`` are zeros."""
    lower, upper = max(start, 0), min(stop, x.shape[2])
    slab = prepare(x[:, :, lower:upper])
    if (lower, upper) == (start, stop):
        return slab
    return F.pad(slab, (0, 0, 0, 0, lower - start, stop - upper))


def _planes(slab_elements: int, channels: int, x: Tensor) -> int:
    return max(1, slab_elements // (channels * x.shape[3] * x.shape[4]))


def _empty(part: Tensor, height: int) -> Tensor:
    shape = (part.shape[0], part.shape[1], height, *part.shape[3:])
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=CHANNELS_LAST)
