"""Tests of custom.networks.detail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.networks import DetailTransfer

M = 3
TARGETS = torch.tensor([2, 0])


@pytest.fixture
def network(randomize) -> DetailTransfer:
    return randomize(DetailTransfer(M, width=4, hidden_channels=2)).eval()


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, 8, 4, 6) * 2 - 1, torch.rand(batch, 1, 8, 4, 6) * 2 - 1


@pytest.mark.parametrize("shape", [(8, 4, 6), (2, 2, 2)])
def test_shape_is_kept(network: DetailTransfer, shape: tuple[int, int, int]) -> None:
    decoded, source = torch.zeros(2, 1, *shape), torch.ones(2, 1, *shape)
    assert network(decoded, source, TARGETS).shape == decoded.shape


def test_starts_from_no_change() -> None:
    decoded, source = images()
    assert torch.equal(DetailTransfer(M, width=4)(decoded, source, TARGETS), decoded)


def test_source_and_target_both_count(network: DetailTransfer) -> None:
    decoded, source = images(1)
    found = network(decoded, source, TARGETS[:1])
    assert not torch.allclose(found, network(decoded, -source, TARGETS[:1]))
    assert not torch.allclose(found, network(decoded, source, TARGETS[1:]))


def test_batch_equals_items(network: DetailTransfer, check_batch) -> None:
    check_batch(network, *images(), TARGETS)


def test_script_equals_eager(network: DetailTransfer, check_script) -> None:
    check_script(network, *images(), TARGETS)


def test_gradients(randomize) -> None:
    network = randomize(DetailTransfer(M, width=4, hidden_channels=2)).double()
    decoded, source = (image[:, :, :4].double().requires_grad_() for image in images(1))
    assert torch.autograd.gradcheck(lambda *x: network(*x, TARGETS[:1]), (decoded, source), fast_mode=True)


@pytest.mark.slow
def test_it_can_take_over_the_sources_detail(network: DetailTransfer) -> None:
    """Trained where the target is the source under another sign, it leaves less than a tenth of the error."""
    torch.manual_seed(0)
    network = DetailTransfer(M, width=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        source = torch.rand(2, 1, 8, 8, 8) * 2 - 1
        decoded = torch.nn.functional.avg_pool3d(-source, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        decoded = decoded.repeat_interleave(4, 4)
        loss, before = (network(decoded, source, TARGETS) + source).square().mean(), (decoded + source).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * before
