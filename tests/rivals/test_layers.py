"""Tests of the networks that several rivals share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from custom.rivals.layers import UNetGenerator, patch_discriminator


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
