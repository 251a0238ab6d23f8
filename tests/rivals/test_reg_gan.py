"""Tests of RegGAN: the warp, the smoothness, and that the registration finds a shift."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from custom.rivals import RegGANObjective
from custom.rivals.objective import least_squares
from custom.rivals.reg_gan import Registration, smoothness
from custom.rivals.rival import Rival


def blobs(side: int = 32) -> torch.Tensor:
    """Smooth texture (1, 1, side, side) in [-1, 1]."""
    noise = torch.rand(side, side, generator=torch.Generator().manual_seed(0)).numpy()
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, 2.0, mode="wrap"))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return smooth[None, None] * 2 - 1


def objective_of(make: Callable[..., Rival]) -> RegGANObjective:
    return RegGANObjective(make("reg_gan"))


def test_a_zero_field_is_the_identity(make: Callable[..., Rival]) -> None:
    image = blobs()
    warped = objective_of(make).warp(image, torch.zeros(1, 2, 32, 32))
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-5)


def test_a_field_of_one_pixel_is_a_shift(make: Callable[..., Rival]) -> None:
    image, field = blobs(), torch.zeros(1, 2, 32, 32)
    field[:, 0] = 1.0
    warped = objective_of(make).warp(image, field)
    torch.testing.assert_close(warped[:, :, :-1], image[:, :, 1:], rtol=0, atol=1e-5)


def test_the_registration_starts_from_the_identity(make: Callable[..., Rival]) -> None:
    with torch.no_grad():
        field = objective_of(make).companions["registration"](blobs(), blobs().flip(2))
    assert field.shape == (1, 2, 32, 32)
    assert field.abs().max() < 0.05


@pytest.mark.slow
def test_a_known_shift_is_recovered(make: Callable[..., Rival]) -> None:
    torch.manual_seed(0)
    truth = blobs()
    moved = truth.roll(2, dims=2)  # truth(h) = moved(h + 2)
    network, warp = Registration(8, 3), objective_of(make).warp
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        field = network(moved, truth)
        loss = 20 * F.l1_loss(warp(moved, field), truth) + 10 * smoothness(field)
        loss.backward()
        optimizer.step()
    inside = field[0, :, 6:-6, 6:-6].detach().mean((1, 2))
    # a quarter of the shift: with so few steps it has not settled
    torch.testing.assert_close(inside, torch.tensor([2.0, 0.0]), rtol=0, atol=0.5)


def test_smoothness_is_that_of_forward_differences() -> None:
    field = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = (field[:, :, 1:] - field[:, :, :-1]).square().mean()
    expected = expected + (field[..., 1:] - field[..., :-1]).square().mean()
    torch.testing.assert_close(smoothness(field), expected)


def test_terms_are_the_published_ones(make: Callable[..., Rival]) -> None:
    objective, image = objective_of(make), blobs()
    discriminator = objective.rival.make_discriminator()
    with torch.no_grad():
        step = objective({"image": image, "label": image.flip(2), "target_modality": torch.tensor([2])}, discriminator)
        fake = step.samples["fake"]
        field = objective.companions["registration"](fake, image.flip(2))
        correction = F.l1_loss(objective.warp(fake, field), image.flip(2))
        torch.testing.assert_close(step.terms["correction"], 20 * correction)
        torch.testing.assert_close(step.terms["smoothness"], 10 * smoothness(field))
        logit = discriminator(fake)[-1].mean()
        torch.testing.assert_close(step.terms["adversarial"], (logit - 1).square())
        real = discriminator(image.flip(2))[-1].mean().view(1)
        expected = least_squares(real, 1.0) + least_squares(logit.view(1), 0.0)
        torch.testing.assert_close(objective.judge(discriminator, step.samples), expected)


def test_small_images_are_padded_for_the_registration() -> None:
    assert Registration(4, 4)(torch.zeros(1, 1, 20, 33), torch.zeros(1, 1, 20, 33)).shape == (1, 2, 20, 33)
