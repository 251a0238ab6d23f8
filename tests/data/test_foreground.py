"""Tests of custom.data.foreground."""

from __future__ import annotations

import torch

from custom.data.foreground import foreground, solid


def test_zero_background_with_slightly_negative_voxels(head) -> None:
    image = torch.from_numpy(head())
    inside = image > 0
    image[0, 0, 0] = -3.0
    assert torch.equal(foreground(image), inside)


def test_signed_intensities(head) -> None:
    image = torch.from_numpy(head())
    inside = image > 0
    image[inside] -= 500  # as after subtracting a mean inside the brain
    assert torch.equal(foreground(image), inside)


def test_noisy_background(head) -> None:
    clean = torch.from_numpy(head())
    noisy = clean + torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 10 + 1
    assert torch.equal(foreground(noisy), clean > 0)


def test_solid_fills_cavities_but_not_the_outside() -> None:
    mask = torch.zeros(1, 9, 9, 9, dtype=torch.bool)
    mask[0, 2:7, 2:7, 2:7] = True
    whole = mask.clone()
    mask[0, 4, 4, 4] = False
    assert torch.equal(solid(mask), whole)
