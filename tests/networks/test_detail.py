"""Tests of custom.networks.detail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.networks import DetailTransfer

M = 3
TARGETS = torch.tensor([2, 0])


@pytest.fixture(params=[(), (6,), (6, 8)], ids=["one level", "two", "three"])
def network(request, randomize) -> DetailTransfer:
    network = randomize(DetailTransfer(M, width=4, hidden_channels=2, coarser_widths=request.param)).eval()
    if network.coarser is not None:  # through so many random layers values would grow, and rounding errors with them
        for parameter in network.coarser.parameters():
            parameter.data /= 4
    return network


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, 8, 4, 6) * 2 - 1, torch.rand(batch, 1, 8, 4, 6) * 2 - 1


@pytest.mark.parametrize("shape", [(8, 4, 6), (2, 2, 2)])
def test_shape_is_kept(network: DetailTransfer, shape: tuple[int, int, int]) -> None:
    decoded, source = torch.zeros(2, 1, *shape), torch.ones(2, 1, *shape)
    assert network(decoded, source, TARGETS).shape == decoded.shape


@pytest.mark.parametrize("widths", [(), (6, 8)])
def test_starts_from_no_change(widths: tuple[int, ...]) -> None:
    decoded, source = images()
    assert torch.equal(DetailTransfer(M, width=4, coarser_widths=widths)(decoded, source, TARGETS), decoded)


def test_coarser_levels_start_from_no_change(randomize) -> None:
    """Weights that had none translate as before when they get some."""
    shallow = randomize(DetailTransfer(M, width=4, hidden_channels=2)).eval()
    deep = DetailTransfer(M, width=4, hidden_channels=2, coarser_widths=(6, 8)).eval()
    lacking = deep.load_state_dict(shallow.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in lacking} == {"coarser"}
    pair = images()
    assert torch.equal(deep(*pair, TARGETS), shallow(*pair, TARGETS))


def test_coarser_levels_see_further(randomize) -> None:
    """A change of the source in one corner reaches voxels that the finest level's blocks do not see."""
    source = torch.rand(1, 1, 96, 4, 4)
    changed = source.index_fill(2, torch.arange(2), 0.0)
    reach = []
    for widths in ((), (6, 8)):
        network = randomize(DetailTransfer(M, width=4, hidden_channels=2, coarser_widths=widths)).eval()
        difference = network(source, changed, TARGETS[:1]) - network(source, source, TARGETS[:1])
        reach.append(int(difference.abs().amax(dim=(0, 1, 3, 4)).nonzero().max()))
    assert reach[1] > 2 * reach[0]


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


def three(batch: int = 2) -> tuple[Tensor, Tensor]:
    decoded, source = images(batch)
    return decoded, torch.cat([source, source.flip(2), -source], dim=1)


def test_of_one_source_nothing_is_fused(network: DetailTransfer) -> None:
    decoded, source = images()
    expected = network(decoded, source, TARGETS)
    network.attention, network.fusion = None, None
    assert torch.equal(network(decoded, source, TARGETS), expected)


def test_sources_are_a_set(network: DetailTransfer, assert_near) -> None:
    decoded, sources = three()
    found = network.with_error(decoded, sources, TARGETS)
    turned = network.with_error(decoded, sources[:, [2, 0, 1]], TARGETS)
    for one, other in zip(found, turned, strict=True):
        assert_near(one, other)
    assert found[0].shape == found[1].shape == decoded.shape
    assert not torch.allclose(network(decoded, sources[:, :2], TARGETS), found[0])


def test_blocks_run_once_however_many_sources(network: DetailTransfer) -> None:
    calls: list[int] = []
    network.blocks[0].register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    network(*three(), TARGETS)
    assert calls == [2]


def test_an_untrained_error_map_expects_a_tenth() -> None:
    network = DetailTransfer(M, width=4, hidden_channels=2)
    for pair in (images(), three()):
        translation, logarithm = network.with_error(*pair, TARGETS)
        assert torch.equal(translation, network(*pair, TARGETS))
        torch.testing.assert_close(logarithm.exp(), torch.full_like(translation, 0.1), atol=1e-3, rtol=0)


def test_no_gradient_of_the_error_reaches_the_translation(network: DetailTransfer) -> None:
    network.error.gain = 1.0  # random weights say anything, and what is clipped has no gradient
    decoded, sources = (image.requires_grad_() for image in three())
    network.with_error(decoded, sources, TARGETS)[1].sum().backward()
    assert decoded.grad is None
    assert sources.grad is None
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {"error"}
    assert all(p.grad.any() for p in network.error.parameters())


def test_a_network_without_the_head_says_so() -> None:
    network = DetailTransfer(M, width=4, error_channels=0)
    assert not any("error" in name for name in network.state_dict())
    with pytest.raises(ValueError, match="expected a detail transfer that predicts errors; found error_channels 0"):
        network.with_error(*images(), TARGETS)
