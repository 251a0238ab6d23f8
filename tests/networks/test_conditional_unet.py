"""Tests of custom.networks.conditional_unet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from custom.networks import Attention, ConditionalUNet

M = 3
TARGETS, TIMES = torch.tensor([2, 0, 1]), torch.tensor([999, 3, 400])


def unet(**settings) -> ConditionalUNet:
    defaults = {
        "channels": [8, 8],
        "attention_levels": [False, True],
        "num_heads": 2,
        "norm_num_groups": 4,
    }
    return ConditionalUNet(4, 2, M, **{**defaults, **settings})


VARIANTS: dict[str, Callable[[], ConditionalUNet]] = {
    "cross-attention": unet,
    "two blocks a level": lambda: unet(num_res_blocks=2),
    "class embedding": lambda: unet(class_embedding=True),
    "gated transformer": lambda: unet(attention="gated_transformer"),
    "self-attention": lambda: unet(attention="self", class_embedding=True),
    "settings by level": lambda: unet(num_res_blocks=[1, 2], num_heads=[1, 4]),
}
every_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


def noisy(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, 4, 2, 4)


@pytest.mark.parametrize(
    ("channels", "attention_levels", "divisor"),
    [([8], [False], 1), ([8, 4], [True, False], 2), ([4, 8, 12], [False, False, True], 4)],
)
@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_shapes(channels: list[int], attention_levels: list[bool], divisor: int, num_res_blocks: int) -> None:
    network = unet(channels=channels, attention_levels=attention_levels, num_res_blocks=num_res_blocks)
    assert network.spatial_divisor == divisor
    x = torch.randn(2, 4, divisor, 2 * divisor, 4)
    assert network(x, TIMES[:2], TARGETS[:2]).shape == (2, 2, divisor, 2 * divisor, 4)


@every_variant
def test_predicts_zero_at_start(make) -> None:
    assert not make()(noisy(), TIMES, TARGETS).any()


@every_variant
def test_mixed_batch_equals_items(make, randomize, check_batch) -> None:
    check_batch(randomize(make()), noisy(), TIMES, TARGETS)


@every_variant
def test_reads_time_and_target(make, randomize) -> None:
    network, x = randomize(make()), noisy(1)
    base = network(x, TIMES[:1], TARGETS[:1])
    assert not torch.allclose(network(x, TIMES[1:2], TARGETS[:1]), base)
    assert not torch.allclose(network(x, TIMES[:1], TARGETS[1:2]), base)


@every_variant
def test_gradients(make, randomize) -> None:
    network = randomize(make()).double()
    x = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: network(v, TIMES[:1], TARGETS[:1]), x, fast_mode=True)


def idle_parameters(network: ConditionalUNet) -> set[str]:
    """Queries and keys of the cross-attention, and the norm before them: over one token the softmax is 1 regardless."""
    idle = ("cross_attention.to_q.", "cross_attention.to_k.", "transformer.norm2.")
    return {name for name, _ in network.named_parameters() if any(part in name for part in idle)}


@every_variant
def test_every_parameter_learns(make, randomize) -> None:
    network = randomize(make())
    network(noisy(), TIMES, TARGETS).square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == idle_parameters(network)


def test_class_embedding_replaces_cross_attention() -> None:
    network = unet(class_embedding=True)
    assert network.class_embedding.weight.shape == (M, 32)
    assert not any("cross_attention" in name for name in network.state_dict())
    assert not any("class_embedding" in name for name in unet().state_dict())


def test_shortcut_equals_full_cross_attention(randomize, monkeypatch, assert_near) -> None:
    network = randomize(unet())
    short = network(noisy_ := noisy(), TIMES, TARGETS)
    monkeypatch.setattr(Attention, "forward", Attention.attend)
    assert_near(network(noisy_, TIMES, TARGETS), short)


@every_variant
def test_state_dict_round_trip_and_script(make, randomize, check_state_dict, check_script) -> None:
    args = (noisy(), TIMES, TARGETS)
    check_state_dict(lambda: randomize(make()), *args)
    check_script(randomize(make()), *args)


@pytest.mark.parametrize("name", ["attention_levels", "num_res_blocks", "num_heads"])
def test_levels_that_do_not_match(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected 2 entries, one a level; found \[1\]"):
        unet(**{name: [1]})


def test_unknown_attention() -> None:
    with pytest.raises(ValueError, match=r"attention: expected one of .*transformer.*found 'cross'"):
        unet(attention="cross")
