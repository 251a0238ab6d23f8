"""Tests of custom.networks.fast.winograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from custom.networks.fast.convolution import channels_last
from custom.networks.fast.winograd import TILE, convolve_tiles, pays, plane_kernels
from custom.networks.fast.workspace import Workspace

# rounding of float32 (6e-8) over sums of 16 × 27 products, times the growth by the transforms
TOLERANCE = 5e-6


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_equals_the_plain_sum(tiles: int, bias: bool, add: bool, assert_near) -> None:
    weight, offset = torch.randn(6, 16, 3, 3, 3), torch.randn(6) if bias else None
    slab, before = torch.randn(1, 16, TILE * tiles + 2, 5, 7), torch.randn(1, 6, TILE * tiles, 5, 7)
    expected = F.conv3d(slab.double(), weight.double(), None if offset is None else offset.double(), padding=(0, 1, 1))
    if add:
        expected += before
    out = channels_last(before).clone(memory_format=torch.preserve_format)
    memory = Workspace()
    with torch.no_grad():
        for _ in range(2 if not add else 1):  # again in memory that was used
            convolve_tiles(channels_last(slab), plane_kernels(weight), offset, out, add=add, memory=memory)
    assert_near(out.double(), expected, tolerance=TOLERANCE)


def test_half_of_the_multiplications() -> None:
    from custom.commands.summary import count_flops

    weight, out = torch.randn(16, 16, 3, 3, 3), channels_last(torch.empty(1, 16, 8, 32, 32))
    slab = channels_last(torch.randn(1, 16, 10, 32, 32))

    def run() -> None:
        convolve_tiles(slab, plane_kernels(weight), None, out, add=False, memory=Workspace())

    plain = count_flops(lambda: F.conv3d(slab, weight, padding=(0, 1, 1)))
    # the transforms of few channels weigh most: 4 to 6 planes, 16 channels each
    assert 0.5 * plain < count_flops(run) < 0.6 * plain


@pytest.mark.parametrize(
    ("shape", "weight", "dtype", "expected"),
    [
        ((1, 64, 16, 48, 36), (64, 64, 3, 3, 3), torch.float32, True),
        ((1, 64, 16, 48, 36), (64, 64, 3, 3, 3), torch.bfloat16, False),
        ((1, 64, 16, 48, 36), (64, 64, 1, 1, 1), torch.float32, False),
        ((1, 64, 3, 96, 72), (64, 64, 3, 3, 3), torch.float32, False),
        ((1, 4, 96, 96, 72), (64, 4, 3, 3, 3), torch.float32, False),
        ((1, 64, 4, 4, 4), (64, 64, 3, 3, 3), torch.float32, False),
    ],
    ids=["large", "bfloat16", "one voxel", "few planes", "few channels", "few voxels"],
)
def test_when_it_pays(shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, expected: bool) -> None:
    assert pays(torch.empty(shape, dtype=dtype), torch.empty(weight, dtype=dtype)) is expected


def test_not_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(torch.empty(1, 64, 16, 48, 36), torch.empty(64, 64, 3, 3, 3))
