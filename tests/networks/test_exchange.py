"""Tests of custom.networks.exchange."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from custom.networks import ResidualStyleTransfer, StyleTransfer
from custom.networks.exchange import SetExchange, exchanges_sources

C, B, S = 4, 2, 3


@pytest.fixture
def exchange(randomize) -> nn.Module:
    return randomize(SetExchange(C, 5)).eval()


def features() -> torch.Tensor:
    return torch.randn(B * S, C, 3, 4, 2)


def test_starts_from_no_change() -> None:
    h = features()
    assert torch.equal(SetExchange(C, 5)(h, S), h)


def test_a_single_source_stays_as_it_is(exchange: nn.Module) -> None:
    h = features()
    assert exchange(h, 1) is h


def test_sources_change_with_their_order_and_subjects_stay_apart(exchange: nn.Module, assert_near) -> None:
    h, order = features(), [2, 0, 1]
    found = exchange(h, S)
    turned = h.unflatten(0, (B, S))[:, order].flatten(0, 1)
    assert_near(exchange(turned, S), found.unflatten(0, (B, S))[:, order].flatten(0, 1))
    assert_near(exchange(h[:S], S), found[:S])
    other = torch.cat([h[:1] + 1, h[1:]])  # what one source shows all of its subject know, and no other
    assert not torch.isclose(exchange(other, S)[1:S], found[1:S]).all(dim=1).any()
    assert_near(exchange(other, S)[S:], found[S:])


def test_a_voxel_is_exchanged_by_itself(exchange: nn.Module, assert_near) -> None:
    h = features()
    assert_near(exchange(h[..., 1:], S), exchange(h, S)[..., 1:])


def test_every_parameter_learns_and_it_can_be_scripted(exchange: nn.Module, check_learning, check_script) -> None:
    check_learning(exchange, exchange(features(), S))
    check_script(exchange, features(), S)


def test_which_networks_exchange() -> None:
    assert exchanges_sources(ResidualStyleTransfer(3, C, width=4, exchange_channels=5))
    assert not exchanges_sources(ResidualStyleTransfer(3, C, width=4))
    assert not exchanges_sources(
        StyleTransfer(3, C, in_channels=3, res_channels=[3], spade_channels=[3], hidden_channels=2)
    )
