"""Tests of ResViT: the shared transformer, the stages, the positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from custom.rivals.res_vit import TransformerBranch
from custom.rivals.rival import Rival


def test_two_blocks_share_one_transformer(make: Callable[..., Rival]) -> None:
    network = make("res_vit")
    calls: list[int] = []
    network.generator.transformer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network.translate(torch.zeros(1, 1, 32, 32), torch.tensor([2]))
    assert len(calls) == 2
    layers = [name for name, part in network.named_modules() if isinstance(part, nn.TransformerEncoderLayer)]
    assert layers == [f"generator.transformer.{i}" for i in range(4)]
    assert len(network.generator.branches) == 2
    names = network.state_dict()
    assert len(names) == len({id(t) for t in names.values()})


def test_dropout_is_in_the_feed_forward_layers_alone(make: Callable[..., Rival]) -> None:
    for layer in make("res_vit").generator.transformer[:-1]:
        assert (layer.self_attn.dropout, layer.dropout1.p) == (0.0, 0.0)
        assert (layer.dropout.p, layer.dropout2.p) == (0.1, 0.1)


def test_without_transformers_it_is_the_residual_generator(make: Callable[..., Rival]) -> None:
    first, second = make("res_vit", transformers=False), make("res_vit")
    own, whole = first.state_dict(), second.state_dict()
    assert set(own) < set(whole)
    assert all(own[name].shape == whole[name].shape for name in own if name != "card")
    new = {name.split(".")[1] for name in set(whole) - set(own)}
    assert new == {"branches", "transformer"}


def test_positions_of_another_map_are_interpolated() -> None:
    torch.manual_seed(0)
    branch = TransformerBranch(4, 8, 3).eval()
    nn.init.zeros_(branch.down[-1].weight)
    nn.init.zeros_(branch.down[-1].bias)
    ramp = torch.arange(3.0).view(3, 1).expand(3, 3).flatten()
    branch.positions.data[:] = ramp.view(1, 9, 1)
    own = branch.embed(torch.zeros(1, 4, 12, 12))
    assert torch.equal(own[0, :, 0], ramp)
    larger = branch.embed(torch.zeros(1, 4, 24, 12))[0, :, 0].view(6, 3)
    assert larger[:, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.0]


def test_the_original_pads_to_256_pixels(make: Callable[..., Rival]) -> None:
    with torch.device("meta"):
        network = make("res_vit", "original")
    assert network.padding(torch.zeros(1, 1, 240, 160)) == [48, 48, 8, 8]
    assert network.padding(torch.zeros(1, 1, 256, 257)) == [7, 8, 0, 0]
