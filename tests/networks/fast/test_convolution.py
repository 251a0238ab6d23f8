"""Tests of custom.networks.fast.convolution."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from custom.networks.fast.convolution import channels_last, convolve, upsample

FORMATS = (torch.contiguous_format, torch.channels_last_3d)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("height", [4, 8, 9, 11])
def test_convolution_by_tiles(
    tiled: list[int], memory_format: torch.memory_format, bias: bool, height: int, assert_near
) -> None:
    conv = nn.Conv3d(16, 5, 3, padding=1, bias=bias)
    x = torch.randn(2, 16, height, 6, 5).contiguous(memory_format=memory_format)
    assert_near(convolve(x, conv.weight, conv.bias), conv(x))
    assert tiled == [4] * (2 * (height // 4))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 4, 40])
def test_small_maps(memory_format: torch.memory_format, channels: int, assert_near) -> None:
    conv = nn.Conv3d(channels, 8, 3, padding=1)
    x = torch.randn(1, channels, 6, 5, 4).contiguous(memory_format=memory_format)
    assert_near(convolve(x, conv.weight, conv.bias), conv(x))


def test_in_bfloat16_it_is_the_plain_convolution(tiled: list[int]) -> None:
    conv, x = nn.Conv3d(16, 4, 3, padding=1), torch.randn(1, 16, 8, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(convolve(x, conv.weight, conv.bias), conv(channels_last(x)))
    assert not tiled


@pytest.mark.parametrize("memory_format", FORMATS)
def test_upsampling_and_convolution_in_one(memory_format: torch.memory_format, assert_near) -> None:
    modules = nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv3d(6, 4, 3, padding=1))
    x = torch.randn(2, 6, 3, 5, 4).contiguous(memory_format=memory_format)
    # sums of at most eight kernel values each, in another order
    torch.testing.assert_close(upsample(modules, x), modules(x), rtol=1e-5, atol=1e-5)
