"""Tests of custom.training.activations."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets.autoencoderkl import AEKLResBlock
from torch import Tensor

from custom.networks import LatentTranslator, ReleaseStyleTransfer, ResidualStyleTransfer
from custom.training.activations import checkpoint_blocks
from custom.training.objectives import (
    AutoencoderObjective,
    DiffusionObjective,
    JointObjective,
    Objective,
    StyleObjective,
)

OBJECTIVES = (AutoencoderObjective, StyleObjective, JointObjective, DiffusionObjective)


def batch(objective: type[Objective]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = objective in (AutoencoderObjective, JointObjective)
    names, shape = (("image", "label"), (2, 1, 16, 16, 16)) if images else (("source", "target"), (2, 4, 8, 8, 8))
    tensors = {name: torch.rand(shape, generator=generator) * 2 - 1 for name in names}
    sets = {} if images else {"source": tensors["source"].unsqueeze(1)}
    source = torch.tensor([0, 1]) if images else torch.tensor([[0], [1]])
    return {**tensors, **sets, "source_modality": source, "target_modality": torch.tensor([2, 3])}


def gradients(network: LatentTranslator, objective: type[Objective], *, checkpointed: bool) -> dict[str, Tensor]:
    network = copy.deepcopy(network)
    trained = objective(network).train()
    if checkpointed:
        checkpoint_blocks(trained)
    torch.manual_seed(0)
    trained(batch(objective)).loss.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def network(tiny_translator: LatentTranslator) -> LatentTranslator:
    """With random values where training starts from zero, so that gradients reach every block."""
    network = copy.deepcopy(tiny_translator)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_the_same(network: LatentTranslator, objective: type[Objective]) -> None:
    plain = gradients(network, objective, checkpointed=False)
    checkpointed = gradients(network, objective, checkpointed=True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(checkpointed[name], gradient), name


@pytest.mark.parametrize("style", [ResidualStyleTransfer, ReleaseStyleTransfer])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_less_is_held(network: LatentTranslator, objective: type[Objective], style: type) -> None:
    network.style_transfer = style(4, 4, width=8)

    def held(checkpointed: bool) -> int:
        trained = objective(copy.deepcopy(network)).train()
        weights = {p.data_ptr() for p in trained.parameters()}
        if checkpointed:
            checkpoint_blocks(trained)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                sizes[tensor.data_ptr()] = tensor.numel()
            kept.append(tensor)  # so that no place is used twice
            return tensor

        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = trained(batch(objective)).loss
        assert loss.requires_grad
        return sum(sizes.values())

    assert held(checkpointed=True) < 0.6 * held(checkpointed=False)


def test_networks_stay_as_their_readers_know_them(network: LatentTranslator, assert_near) -> None:
    state, text = copy.deepcopy(network.state_dict()), repr(network)
    checkpoint_blocks(network)
    checkpoint_blocks(network)
    assert repr(network) == text
    assert network.state_dict().keys() == state.keys()
    assert any(isinstance(block, AEKLResBlock) for block in network.autoencoder.decoder.blocks)
    average = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, state[name]) for name, value in average.state_dict().items())
    image = torch.rand(1, 1, 16, 16, 16)
    fresh = copy.deepcopy(average)
    with torch.no_grad():
        torch.manual_seed(0)
        inferred = average(image)
    torch.manual_seed(0)
    assert_near(fresh(image), inferred)  # blocks and slabs sum in another order
    assert average(image).grad_fn is not None
