"""Tests of dEa-GAN's edges, discriminator and ramp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from custom.rivals import DEaGANObjective
from custom.rivals.dea_gan import edges
from custom.rivals.rival import Rival


def volume() -> torch.Tensor:
    return torch.rand(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_edges_are_those_of_scipy() -> None:
    image = volume()
    padded = np.pad(image[0, 0].double().numpy(), 1, constant_values=-1.0)
    gradient = [ndimage.sobel(padded, axis)[1:-1, 1:-1, 1:-1] / 4 for axis in range(3)]
    expected = 2 * np.tanh(np.sqrt(sum(g**2 for g in gradient))) - 1
    np.testing.assert_allclose(edges(image)[0, 0].numpy(), expected, atol=1e-5)


def test_edges_have_a_gradient_where_there_are_none() -> None:
    image = torch.full((1, 1, 4, 4, 4), -1.0, requires_grad=True)
    found = edges(image)
    assert found.max() < -0.99
    found.sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.0), (2, 5.0), (11, 50.0), (21, 100.0), (80, 100.0)])
def test_the_edges_weight_rises(make: Callable[..., Rival], epoch: int, weight: float) -> None:
    objective = DEaGANObjective(make("dea_gan"))
    objective.epoch = epoch
    fake, real = volume(), volume().flip(2)
    distance = (edges(fake) - edges(real)).abs().mean()
    torch.testing.assert_close(objective.further_terms(fake, real)["edges"], weight * distance)


def test_the_discriminator_sees_source_image_and_edges(make: Callable[..., Rival]) -> None:
    objective, image = DEaGANObjective(make("dea_gan")), volume()
    seen = objective.shown(image, image.flip(2))
    torch.testing.assert_close(seen, torch.cat([image, image.flip(2), edges(image.flip(2))], dim=1))


def test_the_discriminators_map(make: Callable[..., Rival]) -> None:
    """19³ logits of 128³ voxels, as published: padding 2 everywhere."""
    with torch.device("meta"):
        logits = make("dea_gan").make_discriminator()(torch.empty(1, 3, 128, 128, 128))[-1]
    assert logits.shape == (1, 1, 19, 19, 19)


def test_the_generator_gets_an_adversarial_gradient(make: Callable[..., Rival]) -> None:
    """In the published code a pool cut it off."""
    objective = DEaGANObjective(make("dea_gan"))
    image = torch.rand(1, 1, 32, 32, 32)
    step = objective(
        {"image": image, "label": image, "target_modality": torch.tensor([2])}, objective.rival.make_discriminator()
    )
    step.terms["adversarial"].backward()
    assert all(p.grad is not None for p in objective.trained_parameters())
