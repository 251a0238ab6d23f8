"""Tests of the networks that several rivals share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom.rivals.layers import ResidualGenerator, UNetGenerator, UnrolledConv3d, patch_discriminator


def receptive_field(network: nn.Module, side: int, axis: int, *shape: int) -> int:
    """Pixels along an axis that the middle logit depends on."""
    image = torch.randn(1, *shape, requires_grad=True)
    logits: Tensor = network(image)[-1]
    middle = tuple(n // 2 for n in logits.shape[2:])
    logits[(0, 0, *middle)].backward()
    assert image.grad is not None
    reached = image.grad.abs().sum(dim=[i for i in range(image.ndim) if i != axis]) > 0
    assert len(reached) == side
    return int(reached.nonzero().max() - reached.nonzero().min()) + 1


@pytest.mark.parametrize("axis", [2, 3])
def test_a_logit_sees_70_pixels(axis: int) -> None:
    network = patch_discriminator(2, 1, width=2, norm="batch").eval()  # statistics of an image would reach everywhere
    assert receptive_field(network, 128, axis, 1, 128, 128) == 70
    assert network(torch.zeros(1, 1, 256, 160))[-1].shape == (1, 1, 30, 18)


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(1, 3, True), (3, 1, True), (3, 1, False), (1, 1, True)])
def test_an_unrolled_convolution_is_the_convolution(inputs: int, outputs: int, bias: bool, padding_mode: Any) -> None:
    """Result, gradients and names of the parameters; scripted as well, as rivals are exported."""
    torch.manual_seed(0)
    plain = nn.Conv3d(inputs, outputs, 7, padding=3, padding_mode=padding_mode, bias=bias).double()
    unrolled = UnrolledConv3d(inputs, outputs, 7, padding=3, padding_mode=padding_mode, bias=bias).double()
    unrolled.load_state_dict(plain.state_dict())
    x = torch.randn(2, inputs, 9, 8, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, outputs, 9, 8, 10, dtype=torch.float64)
    found = [plain(x), *torch.autograd.grad((plain(x) * weight).sum(), [x, *plain.parameters()])]
    for module in (unrolled, torch.jit.script(unrolled)):
        y = module(x)
        of_it = [y, *torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])]
        torch.testing.assert_close(of_it, found, rtol=1e-10, atol=1e-10)  # sums of 2000 products in double precision


def test_an_unrolled_convolution_has_one_channel_at_an_end() -> None:
    with pytest.raises(ValueError, match="expected one of them to be 1; found 2, 3"):
        UnrolledConv3d(2, 3, 7)


def test_the_wide_convolutions_of_volumes_are_unrolled() -> None:
    network = ResidualGenerator(3, 1, width=2, blocks=1)
    assert [type(m) is UnrolledConv3d for m in (network.head[0], network.tail[-2])] == [True, True]
    flat = ResidualGenerator(2, 1, width=2, blocks=1)
    assert not any(isinstance(m, UnrolledConv3d) for m in flat.modules())


def test_every_level_of_the_u_net_is_concatenated() -> None:
    torch.manual_seed(0)
    network = UNetGenerator(2, 1, width=4, halvings=3).eval()
    assert [up[1].in_channels for up in network.ups] == [16, 16, 8]
    assert [up[1].out_channels for up in network.ups] == [8, 4, 1]
    assert network(torch.zeros(1, 1, 16, 24)).shape == (1, 1, 16, 24)


def test_dropout_is_where_the_authors_have_it() -> None:
    """In the up levels that follow the innermost and are not among the last four."""
    for halvings, expected in ((8, [1, 2, 3]), (7, [1, 2]), (5, [])):
        network = UNetGenerator(2, 1, width=1, halvings=halvings)
        assert [i for i, up in enumerate(network.ups) if isinstance(up[-1], nn.Dropout)] == expected
