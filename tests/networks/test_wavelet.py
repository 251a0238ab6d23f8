"""Tests of custom.networks.wavelet."""

from __future__ import annotations

import pytest
import torch

from custom.networks import HaarTransform


@pytest.mark.parametrize(
    ("levels", "shape", "expected"),
    [
        (0, (2, 1, 3, 5, 7), (2, 1, 3, 5, 7)),
        (1, (2, 1, 4, 6, 2), (2, 8, 2, 3, 1)),
        (1, (1, 3, 2, 2, 4), (1, 24, 1, 1, 2)),
        (2, (1, 1, 8, 4, 12), (1, 64, 2, 1, 3)),
    ],
)
def test_shapes(levels: int, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    haar = HaarTransform(levels)
    assert haar(torch.randn(shape)).shape == expected
    assert haar.inverse(torch.randn(expected)).shape == shape


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_inverse_and_energy(levels: int, assert_near) -> None:
    haar, image = HaarTransform(levels), torch.randn(2, 2, 8, 16, 8)
    coefficients = haar(image)
    assert_near(haar.inverse(coefficients), image)
    assert_near(coefficients.square().sum(), image.square().sum())
    assert_near(haar(haar.inverse(coefficients)), coefficients)


def test_a_constant_has_only_the_low_pass(assert_near) -> None:
    coefficients = HaarTransform(1)(torch.full((1, 1, 4, 4, 4), 3.0))
    assert_near(coefficients[:, 0], torch.full((1, 2, 2, 2), 3.0 * 2**1.5))
    assert coefficients[:, 1:].abs().max() < 1e-6


def test_order_of_the_axes(assert_near) -> None:
    step = torch.tensor([1.0, -1.0]).view(1, 1, 1, 1, 2).expand(1, 1, 2, 2, 2)
    found = HaarTransform(1)(step).flatten()
    assert_near(found, torch.tensor([0.0, 2**1.5, 0, 0, 0, 0, 0, 0]))


def test_batch_equals_items(check_batch) -> None:
    check_batch(HaarTransform(2), torch.randn(3, 1, 8, 4, 4))


def test_gradients() -> None:
    haar = HaarTransform(1).double()
    x = torch.randn(1, 1, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar, x)
    assert torch.autograd.gradcheck(haar.inverse, haar(x).detach().requires_grad_())


def test_nothing_to_save() -> None:
    assert not HaarTransform(2).state_dict()


def test_script_equals_eager(check_script) -> None:
    check_script(HaarTransform(2), torch.randn(1, 1, 8, 4, 4))
