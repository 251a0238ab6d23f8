"""Tests of custom.data.features: what each number sees, on volumes whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from custom.data.features import FEATURES, FEATURES_KEY, measure_features
from custom.data.preprocessing import preprocessing

SHORTEST, LONGEST, WIDTH, DEPTH, HEIGHT, VOLUME, CUT, LAYER, *SHARPNESS = range(len(FEATURES))
SIZE = (80, 96, 76)
SPACING = (2.0, 2.0, 2.0)


def ball(radii: tuple[float, float, float], shape: tuple[int, int, int] = SIZE) -> np.ndarray:
    """Distance from the middle, 1 at the surface of an ellipsoid of ``radii`` voxels."""
    grid = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)))


def brain(shape: tuple[int, int, int] = SIZE) -> np.ndarray:
    """Texture in [-1, 1] within an ellipsoid of 140 × 170 × 130 mm, -1 around it."""
    texture = np.random.default_rng(0).uniform(0.2, 0.8, shape)
    return np.where(ball((35, 42.5, 32.5), shape) < 1, texture, -1).astype(np.float32)


def measured(image: np.ndarray, mask: np.ndarray | None = None, spacing: tuple[float, ...] = SPACING) -> np.ndarray:
    inside = image > -1 if mask is None else mask
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    return measure_features(torch.from_numpy(image), torch.from_numpy(inside), affine).numpy()


def test_sizes() -> None:
    found = measured(brain())
    np.testing.assert_allclose(found[[WIDTH, DEPTH, HEIGHT]], [140, 170, 130], atol=4)  # two voxels
    np.testing.assert_allclose(found[VOLUME], 4 / 3 * np.pi * 70 * 85 * 65 / 1000, rtol=0.02)
    assert found[CUT] < 10
    thick = measured(brain()[:, :, ::2], spacing=(2, 2, 4))
    assert thick[[SHORTEST, LONGEST]].tolist() == [2, 4]
    np.testing.assert_allclose(thick[[WIDTH, DEPTH, HEIGHT, VOLUME]], found[[WIDTH, DEPTH, HEIGHT, VOLUME]], rtol=0.05)


def test_a_brain_that_is_cut_off() -> None:
    assert measured(brain()[:, :, 40:])[CUT] > 90


def test_a_skull_is_a_dark_layer() -> None:
    distance = ball((38, 46, 36))
    head = np.select([distance < 0.85, distance < 0.92, distance < 1], [0.5, -0.8, 0.9], -1).astype(np.float32)
    assert measured(brain())[LAYER] > 90
    assert measured(head, distance < 1)[LAYER] < 60


@pytest.mark.parametrize("axis", range(3))
def test_interpolated_slices_are_blunt_along_their_axis(axis: int) -> None:
    image = brain()
    every_third = image.take(range(0, image.shape[axis], 3), axis=axis)
    factors = [n / m for n, m in zip(image.shape, every_third.shape, strict=True)]
    smooth = ndimage.zoom(every_third, factors, order=1).astype(np.float32)
    before, after = measured(image)[SHARPNESS], measured(smooth, image > -1)[SHARPNESS]
    assert after[axis] < 0.5 * before[axis]
    others = [a for a in range(3) if a != axis]
    np.testing.assert_allclose(after[others], before[others], rtol=0.15)


def test_an_empty_or_tiny_foreground_has_numbers() -> None:
    image = np.full((16, 16, 16), -1, np.float32)
    assert np.isfinite(measured(image)).all()
    image[8, 8, 8] = 1
    found = measured(image)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[VOLUME], 0.008, rtol=1e-5)


def test_the_file_may_lie_as_it_likes(write_volume: Callable[..., Path], head: Callable[..., np.ndarray]) -> None:
    """Other axes, units and padding: the same numbers; the voxels are those that are read without measuring."""
    data = head()
    read = preprocessing("image", measure=True)
    affine = np.array([[0, -2, 0, 50], [2.0, 0, 0, -20], [0, 0, -2, 30], [0, 0, 0, 1]])
    turned = np.flip(np.swapaxes(data, 0, 1), (0, 1, 2))
    paths = [
        write_volume("plain.nii.gz"),
        write_volume("scaled.nii.gz", data * 7),
        write_volume("padded.nii.gz", np.pad(data, 5)),
        write_volume("turned.nii.gz", np.ascontiguousarray(turned), affine=affine),
    ]
    items = [read({"image": str(path)})["image"] for path in paths]
    expected, *others = (item.meta[FEATURES_KEY].numpy() for item in items)
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.5)
    torch.testing.assert_close(
        items[0].as_tensor(), preprocessing("image")({"image": str(paths[0])})["image"].as_tensor(), rtol=0, atol=0
    )
