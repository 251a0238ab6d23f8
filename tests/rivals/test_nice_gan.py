"""Tests of NICE-GAN: the shared encoder, the norms, the heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from custom.rivals import NICEGANObjective
from custom.rivals.nice_gan import InstanceLayerNorm, NICEEncoder, SpectralConv2d
from custom.rivals.rival import Rival
from tests.rivals.test_layers import receptive_field


def batch(side: int = 48) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, label = (torch.rand(1, 1, side, side, generator=generator) * 2 - 1 for _ in range(2))
    return {"image": image, "label": label, "target_modality": torch.tensor([2])}


def test_the_encoder_is_the_discriminators(make: Callable[..., Rival]) -> None:
    network = make("nice_gan")
    domains = network.make_discriminator()
    assert domains["source"].encoder is network.encoder
    assert domains["target"].encoder is not network.encoder
    trained = {id(p) for p in NICEGANObjective(network).trained_parameters()}
    assert not trained & {id(p) for p in domains.parameters()}


def test_slices_whose_sides_are_odd_are_padded(make: Callable[..., Rival]) -> None:
    objective = NICEGANObjective(make("nice_gan"))
    domains = objective.rival.make_discriminator().requires_grad_(False)
    odd = batch(49)
    step = objective(odd, domains)
    real, fake = step.samples["source"]
    assert real.shape == fake.shape == (1, 1, 52, 52)
    torch.testing.assert_close(real[:, :, 1:50, 1:50], odd["image"], rtol=0, atol=0)
    assert real[:, :, 0].unique().tolist() == [-1.0]
    assert all(torch.isfinite(term) for term in step.terms.values())


def test_the_generators_loss_passes_through_the_encoders_and_leaves_them_alone(make: Callable[..., Rival]) -> None:
    objective = NICEGANObjective(make("nice_gan"))
    domains = objective.rival.make_discriminator().requires_grad_(False)
    step = objective(batch(), domains)
    step.terms["cycle"].backward()
    assert all(p.grad is None for p in domains.parameters())
    # of the other direction's cycle too, which goes through an encoder
    assert all(p.grad is not None for p in objective.trained_parameters())


def test_the_discriminators_loss_moves_the_encoder_alone(make: Callable[..., Rival]) -> None:
    objective = NICEGANObjective(make("nice_gan"))
    domains = objective.rival.make_discriminator().requires_grad_(True)
    objective.judge(domains, objective(batch(), domains).samples).backward()
    assert all(p.grad is None for p in objective.trained_parameters())
    assert all(p.grad is not None for p in objective.rival.encoder.parameters())


def test_the_discriminator_comes_first(make: Callable[..., Rival]) -> None:
    """The generators' terms are of the discriminator and the encoders as they are after it has moved."""
    objective = NICEGANObjective(make("nice_gan"))
    domains = objective.rival.make_discriminator().eval()  # no power iterations on the way

    def move(samples: dict) -> None:
        assert not samples["target"][1].requires_grad
        with torch.no_grad():
            for p in domains.parameters():
                p.mul_(2.0)

    before = objective(batch(), domains).loss
    found = objective(batch(), domains, move).loss
    torch.testing.assert_close(found, objective(batch(), domains).loss)
    assert (found - before).abs() > 1e-3 * before


def test_spectral_norm_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = SpectralConv2d(3, 8, stride=2).train()
    for _ in range(500):  # to the singular vectors themselves: theirs iterates in another order
        ours.iterate()
    theirs = spectral_norm(nn.Conv2d(3, 8, 4, stride=2, padding=1, padding_mode="reflect"))
    parametrization = theirs.parametrizations.weight
    with torch.no_grad():
        parametrization.original.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
        parametrization[0]._u.copy_(ours.left)
        parametrization[0]._v.copy_(ours.right)
    image = torch.randn(2, 3, 12, 12)
    for _ in range(3):
        a, b = ours(image), theirs(image)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    assert ours.weight.grad is not None
    scale = ours.weight.grad.abs().max()
    assert (ours.weight.grad - parametrization.original.grad).abs().max() < 1e-4 * scale
    before = ours.left.clone()
    ours.eval()(image)
    assert torch.equal(ours.left, before)  # the power iteration rests
    assert torch.linalg.matrix_norm(ours.weight.flatten(1), 2).item() != pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_norm_is_the_published_mixture(adaptive: bool) -> None:
    torch.manual_seed(0)
    norm, x = InstanceLayerNorm(5, adaptive=adaptive), torch.randn(2, 5, 6, 7) * 3 + 1
    scale, shift = torch.randn(2, 5), torch.randn(2, 5)
    share = norm.rho.softmax(1)
    assert share[:, 0].tolist() == pytest.approx([0.9 if adaptive else 0.1] * 5, abs=0.01)
    instance = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()
    layer = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    mixed = share[:, 0].view(1, 5, 1, 1) * instance + share[:, 1].view(1, 5, 1, 1) * layer
    if adaptive:
        expected = mixed * scale.view(2, 5, 1, 1) + shift.view(2, 5, 1, 1)
        torch.testing.assert_close(norm(x, scale, shift), expected, rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(norm(x), mixed, rtol=0, atol=1e-5)


def test_attention_by_class_activation() -> None:
    torch.manual_seed(0)
    encoder, image = NICEEncoder(4).eval(), torch.randn(1, 1, 16, 16)
    nn.init.constant_(encoder.strength, 0.5)
    h = encoder.layers(image)
    attended = encoder.mix(torch.cat([h, h], 1) * encoder.activation.weight)
    torch.testing.assert_close(encoder(image)[1], F.leaky_relu(0.5 * attended + h, 0.2))


def test_the_local_head_sees_70_pixels(make: Callable[..., Rival]) -> None:
    source = make("nice_gan").make_discriminator()["source"].eval()
    nn.init.zeros_(source.encoder.activation.weight)  # its sums reach everywhere
    source.encoder.activation.weight.data[..., 0, 0] = 1e-9

    def local(image: torch.Tensor) -> list[torch.Tensor]:
        return [source.local_head(source.trunk(source.encoder(image)[1]))]

    assert receptive_field(local, 128, 2, 1, 128, 128) == 70


def test_without_a_discriminator(make: Callable[..., Rival]) -> None:
    with pytest.raises(ValueError, match="discriminator: expected one from the first step on"):
        NICEGANObjective(make("nice_gan"))(batch())
