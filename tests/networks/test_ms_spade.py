"""Tests of custom.networks.ms_spade."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.spade_norm import SPADE
from torch import nn

from custom.networks import (
    MSSPADE,
    MSSPADEBlock,
    PreActivationBlock,
    ReleaseStyleTransfer,
    ResidualStyleTransfer,
    SourceSummary,
    StyleTransfer,
    SwitchableConv3d,
)
from custom.networks.ms_spade import coordinates

M, L = 3, 2
TARGETS = torch.tensor([2, 0, 1])


def style_transfer() -> StyleTransfer:
    return StyleTransfer(M, L, in_channels=3, res_channels=[4, 4], spade_channels=[4, 3], hidden_channels=3)


def residual_style_transfer(
    summary_channels: int = 0, num_blocks: int = 2, position_channels: int = 0, exchange_channels: int = 0
) -> ResidualStyleTransfer:
    """Trained a little: its last layers start at zero, where most gradients are zero too."""
    network = ResidualStyleTransfer(
        M, L, width=4, num_blocks=num_blocks, hidden_channels=3, summary_channels=summary_channels,
        position_channels=position_channels, exchange_channels=exchange_channels,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "convolution": (lambda: SwitchableConv3d(M, 2, 5), 2, 5),
    "convolution of one voxel": (lambda: SwitchableConv3d(M, 2, 4, kernel_size=1), 2, 4),
    "normalisation": (lambda: MSSPADE(M, 4, 3), 4, 4),
    "block": (lambda: MSSPADEBlock(M, 4, 4, 3), 4, 4),
    "block to other channels": (lambda: MSSPADEBlock(M, 4, 2, 3), 4, 2),
    "style transfer": (style_transfer, L, L),
    "residual style transfer": (residual_style_transfer, L, L),
    "residual style transfer with a summary": (lambda: residual_style_transfer(5), L, L),
    "residual style transfer that knows places": (lambda: residual_style_transfer(5, 2, 6), L, L),
    "normalisation over channels": (lambda: MSSPADE(M, 4, 3, norm="channel"), 4, 4),
    "release block": (lambda: PreActivationBlock(M, 4, 4, 3), 4, 4),
    "release block to more channels": (lambda: PreActivationBlock(M, 2, 4, 3), 2, 4),
    "release style transfer": (lambda: ReleaseStyleTransfer(M, L, width=3, hidden_channels=3), L, L),
}
every_network = pytest.mark.parametrize(("make", "channels", "out_channels"), NETWORKS.values(), ids=NETWORKS)


@every_network
def test_shapes(make: Callable[[], nn.Module], channels: int, out_channels: int) -> None:
    network = make()
    for shape in [(4, 4, 4), (5, 3, 2)]:
        assert network(torch.randn(3, channels, *shape), TARGETS).shape == (3, out_channels, *shape)


@every_network
def test_mixed_batch_equals_items(make, channels: int, out_channels: int, check_batch) -> None:
    check_batch(make(), torch.randn(3, channels, 4, 3, 5), TARGETS)


@every_network
def test_gradients(make, channels: int, out_channels: int) -> None:
    network = make().double()
    x = torch.randn(1, channels, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: network(v, torch.tensor([1])), x, fast_mode=True)


@every_network
def test_every_parameter_learns(make, channels: int, out_channels: int, check_learning) -> None:
    network = make()
    check_learning(network, network(torch.randn(3, channels, 4, 4, 3), TARGETS))


@every_network
def test_only_the_target_of_the_batch_learns(make, channels: int, out_channels: int) -> None:
    network = make()
    (network(torch.randn(2, channels, 4, 4, 3), torch.tensor([1, 1])) ** 3).sum().backward()
    convolutions = [m for m in network.modules() if isinstance(m, SwitchableConv3d)]
    assert convolutions
    for convolution in convolutions:
        assert [bool(g.any()) for g in convolution.weight.grad] == [False, True, False]


@every_network
def test_the_target_selects(make, channels: int, out_channels: int) -> None:
    network, x = make(), torch.randn(1, channels, 4, 4, 4)
    outputs = [network(x, torch.tensor([m])) for m in range(M)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


@every_network
def test_state_dict_round_trip_and_script(make, channels: int, out_channels: int, check_state_dict, check_script):
    x = torch.randn(3, channels, 4, 3, 4)
    check_state_dict(make, x, TARGETS)
    check_script(make(), x, TARGETS)


def test_convolution_is_torchs_with_the_targets_kernel(assert_near) -> None:
    convolution, x = SwitchableConv3d(M, 2, 5), torch.randn(3, 2, 4, 5, 3)
    found = convolution(x, TARGETS)
    for item, target in enumerate(TARGETS):
        expected = F.conv3d(x[item : item + 1], convolution.weight[target], convolution.bias[target], padding=1)
        assert_near(found[item : item + 1], expected)


def test_equation_1(assert_near) -> None:
    layer, h = MSSPADE(M, 4, 3), 2 + 3 * torch.randn(2, 4, 4, 5, 3)
    found = layer(h, torch.tensor([2, 2]))
    mean, var = h.mean(dim=(2, 3, 4), keepdim=True), h.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
    hidden = F.relu(F.conv3d(h, layer.shared.weight[2], layer.shared.bias[2], padding=1))
    weight, bias = layer.gamma_beta.weight[2], layer.gamma_beta.bias[2]
    gamma = 1 + F.conv3d(hidden, weight[:4], bias[:4], padding=1)
    beta = F.conv3d(hidden, weight[4:], bias[4:], padding=1)
    assert_near(found, gamma * (h - mean) / (var + 1e-5).sqrt() + beta)


@pytest.mark.parametrize("target", range(M))
def test_equals_monais_spade_of_the_target(target: int, assert_near) -> None:
    layer, h = MSSPADE(M, 4, 3), torch.randn(2, 4, 4, 5, 3)
    spade = SPADE(4, 4, kernel_size=3, spatial_dims=3, hidden_channels=3)
    spade.mlp_shared.adn = nn.ReLU()  # MONAI's is leaky; the paper's is not
    with torch.no_grad():
        spade.mlp_shared.conv.weight.copy_(layer.shared.weight[target])
        spade.mlp_shared.conv.bias.copy_(layer.shared.bias[target])
        for part, convolution in enumerate((spade.mlp_gamma.conv, spade.mlp_beta.conv)):
            convolution.weight.copy_(layer.gamma_beta.weight[target].chunk(2)[part])
            convolution.bias.copy_(layer.gamma_beta.bias[target].chunk(2)[part])
    # activation and normalisation of the gamma and beta maps are MONAI's defaults: none of the former asked for
    for convolution in (spade.mlp_gamma, spade.mlp_beta):
        convolution.adn = nn.Identity()
    spade.param_free_norm = nn.InstanceNorm3d(4)
    assert_near(layer(h, torch.full((2,), target)), spade(h, h))


def test_residual_style_transfer_starts_from_the_identity() -> None:
    z = torch.randn(3, L, 4, 4, 4)
    assert torch.equal(ResidualStyleTransfer(M, L, width=4)(z, TARGETS), z)
    assert not torch.allclose(residual_style_transfer()(z, TARGETS), z)


def test_summary_is_of_a_set_of_voxels(assert_near) -> None:
    summary, voxels = SourceSummary(L, 6, hidden_channels=5, num_heads=2), torch.randn(3, L, 40)
    expected = summary(voxels)
    assert expected.shape == (3, 6)
    assert_near(summary(voxels[..., torch.randperm(40)]), expected)
    assert_near(summary(voxels.repeat(1, 1, 2)), expected)
    assert not torch.allclose(summary(voxels + 1), expected)


def test_a_crop_with_the_context_of_the_whole_is_the_crop_of_the_whole(assert_near) -> None:
    network, z = residual_style_transfer(5, num_blocks=1), torch.randn(3, L, 20, 20, 20)
    # a block has six 3³ convolutions in a row, and one stands before and one after: they reach eight voxels far
    inner, middle = (..., *[slice(1, 19)] * 3), (..., *[slice(8, 10)] * 3)
    expected = network(z, TARGETS)[inner][middle]
    found = network(z[inner], TARGETS, z.flatten(2))[middle]
    assert_near(found, expected)
    other = network(z[inner], TARGETS, z.flatten(2) + 1)[middle]
    assert (other - expected).abs().max() > 1e-4 * expected.abs().max()


def test_a_crop_with_its_place_in_the_whole_is_the_crop_of_the_whole(assert_near) -> None:
    network, z = residual_style_transfer(5, 1, 6), torch.randn(3, L, 20, 21, 22)
    inner, middle = (..., *[slice(1, 19)] * 3), (..., *[slice(8, 10)] * 3)  # within reach, as above
    place = coordinates(20, 21, 22)[inner].expand(3, -1, -1, -1, -1)
    expected = network(z, TARGETS)[inner][middle]
    assert_near(network(z[inner], TARGETS, z.flatten(2), place)[middle], expected)
    elsewhere = network(z[inner], TARGETS, z.flatten(2))[middle]  # as if the crop were the whole
    assert (elsewhere - expected).abs().max() > 1e-4 * expected.abs().max()


def test_places_change_nothing_before_they_are_trained() -> None:
    z = torch.randn(3, L, 4, 4, 4)
    plain, knowing = (ResidualStyleTransfer(M, L, width=4, position_channels=n) for n in (0, 6))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    knowing.load_state_dict({**knowing.state_dict(), **plain.state_dict()})
    assert torch.equal(knowing(z, TARGETS), plain(z, TARGETS))


def test_sources_of_a_set_tell_one_another(assert_near) -> None:
    network, z = residual_style_transfer(5, exchange_channels=6), torch.randn(4, L, 4, 5, 3)
    target = torch.tensor([2, 2, 0, 0])  # two subjects of two sources
    alone, together = network(z, target), network(z, target, num_sources=2)
    assert not torch.isclose(alone, together).all(dim=1).any()
    assert_near(network(z[[1, 0, 3, 2]], target, num_sources=2), together[[1, 0, 3, 2]])
    assert_near(network(z[:2], target[:2], num_sources=2), together[:2])
    plain = residual_style_transfer(5)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "exchanges" not in k})
    assert torch.equal(plain(z, target), alone)
    assert torch.equal(plain(z, target, num_sources=2), alone)
    script = torch.jit.script(network)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        assert_near(script(z, target, None, None, 2), together)


def test_coordinates_are_mirrored_from_left_to_right() -> None:
    place = coordinates(5, 3, 2)
    assert place.shape == (1, 3, 5, 3, 2)
    assert torch.equal(place[0, 0], place[0, 0].flip(0))
    assert place[0, 0, :, 0, 0].tolist() == [1.0, 0.5, 0.0, 0.5, 1.0]
    assert place[0, 1, 0, :, 0].tolist() == [-1.0, 0.0, 1.0]
    assert place[0, 2, 0, 0].tolist() == [-1.0, 1.0]


def test_channel_norm_does_not_depend_on_the_rest_of_the_volume(assert_near) -> None:
    layer, h = MSSPADE(M, 4, 3, norm="channel"), torch.randn(3, 4, 9, 9, 9)
    inner, middle = (..., *[slice(1, 8)] * 3), (..., *[slice(3, 6)] * 3)  # two 3³ convolutions reach two voxels far
    changed = torch.full_like(h, 5.0)
    changed[inner] = h[inner]
    assert_near(layer(changed, TARGETS)[middle], layer(h, TARGETS)[middle])
    instance = MSSPADE(M, 4, 3)
    assert not torch.allclose(instance(changed, TARGETS)[middle], instance(h, TARGETS)[middle], atol=0.1)
    with torch.no_grad():  # kernels of zero leave the normalisation alone
        for parameter in layer.parameters():
            parameter.zero_()
    # the norm of 1e-4 below the root is little against 100 times a normal variable
    size = layer(100 * h, TARGETS).square().mean(dim=1)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-3, rtol=0)


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match=r"norm: expected one of .*instance.*channel.*found 'batch'"):
        MSSPADE(M, 4, norm="batch")
