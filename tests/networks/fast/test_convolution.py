"""Tests of custom.networks.fast.convolution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks import ConditionalUNet, ReleaseStyleTransfer
from custom.networks.fast import convolution, winograd
from custom.networks.fast.convolution import Conv3d, channels_last, upsample, with_fast_convolutions

FORMATS = (torch.contiguous_format, torch.channels_last_3d)


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Winograd's method for small maps too, in slabs of one tile; the heights of the slabs that it computes."""
    monkeypatch.setattr(winograd, "MIN_WORK", 0)
    monkeypatch.setattr(convolution, "SLAB_ELEMENTS", 1)
    heights: list[int] = []
    convolve_tiles = winograd.convolve_tiles

    def spy(slab: Tensor, kernels: list[Tensor], bias: Tensor | None, out: Tensor, **settings: object) -> None:
        heights.append(out.shape[2])
        convolve_tiles(slab, kernels, bias, out, **settings)

    monkeypatch.setattr(winograd, "convolve_tiles", spy)
    return heights


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("height", [4, 8, 9, 11])
def test_convolution_by_tiles(
    tiled: list[int], memory_format: torch.memory_format, bias: bool, height: int, assert_near
) -> None:
    conv = Conv3d(16, 5, bias=bias)
    x = torch.randn(2, 16, height, 6, 5).contiguous(memory_format=memory_format)
    with torch.no_grad():
        found = conv(x)
    assert_near(found, F.conv3d(x, conv.weight, conv.bias, padding=1))
    assert tiled == [4] * (2 * (height // 4))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 4, 40])
def test_small_maps(memory_format: torch.memory_format, channels: int, assert_near) -> None:
    conv, x = Conv3d(channels, 8), torch.randn(1, channels, 6, 5, 4).contiguous(memory_format=memory_format)
    with torch.no_grad():
        assert_near(conv(x), F.conv3d(x, conv.weight, conv.bias, padding=1))


def test_in_training_it_is_the_plain_convolution(tiled: list[int]) -> None:
    conv, x = Conv3d(16, 4), torch.randn(1, 16, 8, 5, 4)
    found = conv(x)
    assert torch.equal(found, F.conv3d(x, conv.weight, conv.bias, padding=1))
    found.sum().backward()
    assert conv.weight.grad is not None
    assert not tiled


def test_in_bfloat16_it_is_the_plain_convolution(tiled: list[int]) -> None:
    conv, x = Conv3d(16, 4), torch.randn(1, 16, 8, 5, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x), F.conv3d(channels_last(x), conv.weight, conv.bias, padding=1))
    assert not tiled


def test_in_torchscript_it_is_the_plain_convolution(tiled: list[int]) -> None:
    conv, x = Conv3d(16, 4), torch.randn(1, 16, 8, 5, 4)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(conv)(x), F.conv3d(x, conv.weight, conv.bias, padding=1))
    assert not tiled


def unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    network = ConditionalUNet(16, 4, 3, channels=[16, 32], attention_levels=[False, True], norm_num_groups=4)
    return network, (torch.randn(1, 16, 8, 8, 8), torch.tensor([3]), torch.tensor([1]))


def style_transfer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    network = ReleaseStyleTransfer(3, 4, width=16, hidden_channels=16)
    return network, (torch.randn(1, 4, 8, 8, 8), torch.tensor([2]))


@pytest.mark.parametrize("make", [unet, style_transfer])
def test_networks_are_the_same_without_gradients(make: Callable, tiled: list[int], randomize, assert_near) -> None:
    network, inputs = make()
    randomize(network)
    expected = network(*inputs).detach()
    assert not tiled
    with torch.no_grad():
        # of random weights: from layer to layer the values grow, to 3e17, and the roundings with them
        assert_near(network(*inputs), expected, tolerance=5e-5)
    assert tiled


def test_replaced_in_a_block() -> None:
    block = nn.Sequential(
        nn.Conv3d(2, 2, 3, padding=1), nn.Sequential(nn.Conv3d(2, 2, 3, stride=2, padding=1), nn.Conv3d(2, 2, 1))
    )
    before = dict(block.named_parameters())
    x = torch.randn(1, 2, 4, 4, 4)
    expected = block(x)
    assert with_fast_convolutions(block) is block
    assert [type(m) for m in block.modules() if isinstance(m, nn.Conv3d)] == [Conv3d, nn.Conv3d, nn.Conv3d]
    assert all(parameter is before[name] for name, parameter in block.named_parameters())
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_upsampling_and_convolution_in_one(memory_format: torch.memory_format, assert_near) -> None:
    modules = nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv3d(6, 4, 3, padding=1))
    x = torch.randn(2, 6, 3, 5, 4).contiguous(memory_format=memory_format)
    with torch.no_grad():
        assert_near(upsample(modules, x), modules(x))
    assert upsample(modules, x).requires_grad
