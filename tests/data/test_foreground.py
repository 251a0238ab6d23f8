"""Tests of custom.data.foreground."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from custom.data.foreground import foreground, solid

SHAPE = (30, 34, 26)


def standardised(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Z-scores of the brain, its background left at 0."""
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)


def noise(scale: float) -> np.ndarray:
    """Magnitude noise."""
    return np.hypot(*np.random.default_rng(1).normal(0, scale, (2, *SHAPE)))


# what is done to a brain of 100 to 900 on a background of 0
SAME = {
    "raw": lambda v, m: v,
    "offset": lambda v, m: 0.37 * v + 1234,
    "negative": lambda v, m: v / 900 - 1,
    "small": lambda v, m: v * 1e-7,
    "z-scores of the volume": lambda v, m: (v - v.mean()) / v.std(),
    "z-scores of the brain": standardised,
    "background below": lambda v, m: np.where(m, v, -1000),
    "background above": lambda v, m: np.where(m, v, 5000),
    "background within": lambda v, m: np.where(m, v, 450.5),
    "NaN around": lambda v, m: np.where(m, v, np.nan),
    "infinite around": lambda v, m: np.where(m, v, np.inf),
    "NaN beyond the background": lambda v, m: np.where(np.arange(SHAPE[0])[:, None, None] < 2, np.nan, v),
    "filled in beyond the background": lambda v, m: np.where(np.arange(SHAPE[0])[:, None, None] < 2, -1000, v),
    "noise": lambda v, m: np.where(m, v, noise(6)),
    "noise and offset": lambda v, m: np.where(m, v, noise(6)) - 300,
    "noise that is padded": lambda v, m: np.where(np.arange(SHAPE[2]) > 1, np.where(m, v, noise(6)), 0),
    "noise in whole numbers": lambda v, m: np.where(m, v, np.rint(noise(1))),
    "ringing": lambda v, m: np.where(m, v, np.minimum(0, np.random.default_rng(1).normal(0, 3, SHAPE)) * edge(m)),
    "bytes": lambda v, m: np.rint(v * 0.28),
}


def edge(mask: np.ndarray) -> np.ndarray:
    """Voxels around a brain that a neighbour along an axis belongs to."""
    return sum(np.roll(mask, shift, axis) for axis in range(3) for shift in (-1, 1)).astype(bool) & ~mask


@pytest.mark.parametrize("change", SAME)
def test_the_brain_is_found_whatever_the_background_is(head, change: str) -> None:
    image = head()
    inside = image > 0
    changed = torch.from_numpy(SAME[change](image.astype(np.float64), inside).astype(np.float32))
    found = foreground(changed)
    assert int((found.numpy() != inside).sum()) == 0
    assert torch.equal(foreground(changed[None])[0], found)


def test_a_constant_has_none() -> None:
    assert not foreground(torch.full((16, 16, 16), 3.0)).any()
    assert not foreground(torch.full((16, 16, 16), torch.nan)).any()


def test_uniform_tissue_is_no_background() -> None:
    """A rim of one value around the rest, as in a phantom without noise."""
    image = torch.zeros(20, 20, 20)
    image[3:17, 3:17, 3:17] = 100
    image[4:16, 4:16, 4:16] = 300 + torch.rand((12, 12, 12), generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(foreground(image), image > 0)


@pytest.mark.parametrize("change", ["raw", "offset", "z-scores of the brain", "background below", "NaN around"])
def test_dark_fluid_around_a_brain_is_no_noise(brain: Callable, change: str) -> None:
    """A quarter of it is within a twentieth of the range from its darkest voxel, in the ventricles and all around."""
    image = brain("t1").astype(np.float64)
    inside = image > 0
    changed = SAME[change](image, inside).astype(np.float32)
    assert int((foreground(torch.from_numpy(changed)).numpy() != inside).sum()) == 0


def test_the_head_may_touch_the_faces(head: Callable) -> None:
    image = head()[:, :, 6:20]
    assert torch.equal(foreground(torch.from_numpy(image)), torch.from_numpy(image > 0))


def test_solid_fills_cavities_but_not_the_outside() -> None:
    mask = torch.zeros(1, 9, 9, 9, dtype=torch.bool)
    mask[0, 2:7, 2:7, 2:7] = True
    whole = mask.clone()
    mask[0, 4, 4, 4] = False
    assert torch.equal(solid(mask), whole)
