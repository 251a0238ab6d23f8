"""Tests of custom.networks.attention."""

from __future__ import annotations

import pytest
import torch

from custom.networks import Attention, SpatialTransformerBlock


def softmax_attention(layer: Attention, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Eq. (3) of the paper, written out."""
    heads, width = layer.num_heads, x.shape[-1] // layer.num_heads
    q, k, v = (t.unflatten(-1, (heads, width)) for t in (layer.to_q(x), layer.to_k(context), layer.to_v(context)))
    weights = (torch.einsum("bnhc,bshc->bhns", q, k) / width**0.5).softmax(dim=-1)
    return layer.out(torch.einsum("bhns,bshc->bnhc", weights, v).flatten(2))


def block(context_channels: int = 3) -> SpatialTransformerBlock:
    return SpatialTransformerBlock(8, context_channels, num_heads=2, norm_num_groups=4)


def one_hot(*targets: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(targets), 3).float().unsqueeze(1)


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_equals_softmax_attention(num_heads: int, tokens: int, assert_near) -> None:
    layer = Attention(8, 5, num_heads)
    x, context = torch.randn(2, 6, 8), torch.randn(2, tokens, 5)
    assert_near(layer.attend(x, context), softmax_attention(layer, x, context))


def test_single_token_shortcut_equals_the_full_computation(assert_near) -> None:
    layer = Attention(8, 5, 2)
    x, context = torch.randn(2, 6, 8), torch.randn(2, 1, 5)
    short = layer(x, context)
    assert short.shape == (2, 1, 8)
    assert_near(short.expand(2, 6, 8), layer.attend(x, context))


def test_several_tokens_take_the_full_computation() -> None:
    layer = Attention(8, 5, 2)
    x, context = torch.randn(2, 6, 8), torch.randn(2, 3, 5)
    assert torch.equal(layer(x, context), layer.attend(x, context))


def test_no_matrix_of_all_pairs(largest_result) -> None:
    layer, x = Attention(8, 8, 2).eval(), torch.randn(1, 1024, 8)
    with torch.no_grad(), largest_result:
        layer(x, x)
    assert largest_result.elements < 1024 * 1024 / 8


@pytest.mark.parametrize("context_channels", [0, 3])
def test_block_shapes_and_identity_at_start(context_channels: int) -> None:
    x = torch.randn(2, 8, 2, 3, 4)
    assert torch.equal(block(context_channels)(x, one_hot(0, 2)), x)


def test_block_reads_the_target(randomize) -> None:
    layer, x = randomize(block()), torch.randn(1, 8, 2, 2, 2)
    assert not torch.allclose(layer(x, one_hot(0)), layer(x, one_hot(1)))


def test_block_without_context(randomize) -> None:
    layer, x = randomize(block(0)), torch.randn(1, 8, 2, 2, 2)
    assert torch.equal(layer(x, one_hot(0)), layer(x, one_hot(1)))
    assert not any("cross" in name for name in layer.state_dict())


def test_batch_equals_items(randomize, check_batch) -> None:
    check_batch(randomize(block()), torch.randn(3, 8, 2, 3, 2), one_hot(0, 2, 1))


def test_gradients(randomize) -> None:
    layer = randomize(block()).double()
    x = torch.randn(1, 8, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    context = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x, context))


def test_every_parameter_learns_from_several_tokens(randomize, check_learning) -> None:
    layer = randomize(block())
    check_learning(layer, layer(torch.randn(2, 8, 2, 2, 2), torch.randn(2, 3, 3)))


def test_a_single_token_leaves_queries_and_keys_alone(randomize) -> None:
    layer = randomize(block())
    layer(torch.randn(2, 8, 2, 2, 2), one_hot(0, 1)).square().sum().backward()
    idle = {name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {"cross_attention.to_q.weight", "cross_attention.to_k.weight", "norm2.weight", "norm2.bias"}


@pytest.mark.parametrize("context_channels", [0, 3])
def test_state_dict_round_trip_and_script(randomize, check_state_dict, check_script, context_channels: int) -> None:
    x = torch.randn(2, 8, 2, 3, 2)
    check_state_dict(lambda: randomize(block(context_channels)), x, one_hot(0, 1))
    check_script(randomize(block(context_channels)), x, one_hot(0, 1))


def test_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="channels: expected a multiple of num_heads = 3, found 8"):
        Attention(8, 8, 3)
