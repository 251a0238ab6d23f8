"""Tests of custom.data.augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from custom.data.augmentation import AugmentSubjectd, RandThickSlicesd
from custom.data.intensities import MEDIAN, SPREAD
from custom.utils.identity import describe

KEYS = ("t1", "t2")
STILL = {"degrees": 0.0, "stretch": 0.0, "deformation": 0.0}
PLAIN = {"bias": 0.0, "gamma": (1.0, 1.0), "map_share": 0.0, "noise": 0.0, "degraded_share": 0.0}


def subject() -> dict[str, Tensor]:
    """A smooth brain in [-1, 1] on -1, its negative, and a label of its bright parts."""
    grid = np.meshgrid(*(np.linspace(-1.15, 1.15, n) for n in (48, 48, 32)), indexing="ij")
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(48, 48, 32)), 3)
    texture = (texture - texture.min()) / np.ptp(texture)
    inside = sum(g**2 for g in grid) < 1
    volumes = {"t1": np.where(inside, 1.7 * texture - 0.8, -1), "t2": np.where(inside, 0.9 - 1.7 * texture, -1)}
    volumes["seg"] = (inside & (texture > 0.6)).astype(float)
    return {key: torch.from_numpy(value).float()[None] for key, value in volumes.items()}


def augmented(seed: int = 0, **settings) -> dict[str, Tensor]:
    step = AugmentSubjectd(KEYS, "seg", **settings)
    return step.set_random_state(seed)(subject() | {"subject": "a"})


@pytest.fixture(scope="module")
def copies() -> list[dict[str, Tensor]]:
    return [augmented(seed) for seed in range(3)]


def test_images_are_as_the_preprocessing_gives_them(copies) -> None:
    for copy in copies:
        assert copy["subject"] == "a"
        shapes = {tuple(copy[key].shape) for key in (*KEYS, "seg")}
        assert len(shapes) == 1
        assert all(n % 16 == 0 for n in shapes.pop()[1:])
        for key in KEYS:
            assert type(copy[key]) is Tensor
            assert (float(copy[key].min()), float(copy[key].max())) == (-1.0, 1.0)
        assert set(copy["seg"].unique().tolist()) == {0, 1}


def test_the_background_stays_background(copies) -> None:
    """Around the brain it is exactly -1, and the brain keeps its size within what it is stretched by."""
    before = int((subject()["t1"] > -1).sum())
    for copy in copies:
        inside = copy["t1"][0] > -1
        pieces, _ = ndimage.label(ndimage.binary_fill_holes(inside))
        assert np.bincount(pieces.ravel())[1:].max() > 0.999 * inside.sum()
        assert 0.7 < int(inside.sum()) / before < 1.35
        faces = torch.cat([copy["t1"][0].select(axis, end).flatten() for axis in range(3) for end in (0, -1)])
        assert (faces == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_contrasts_and_labels_stay_aligned(seed: int) -> None:
    """T2 is T1's negative; after any common deformation it still is, and the label marks what is bright in T1."""
    copy = augmented(seed, **PLAIN)
    # without the outline, into which the background shines
    inside = ndimage.binary_erosion((copy["t1"][0] > -1) & (copy["t2"][0] > -1), iterations=3)
    t1, t2, label = (copy[key][0][torch.from_numpy(inside)] for key in ("t1", "t2", "seg"))
    assert np.corrcoef(t1, t2)[0, 1] < -0.98
    assert t1[label > 0].mean() > t1[label == 0].mean() + 0.3
    moved = augmented(seed, **PLAIN, **STILL)
    assert moved["t1"].shape != copy["t1"].shape or not torch.allclose(moved["t1"], copy["t1"], atol=0.1)


def test_each_contrast_has_looks_of_its_own(copies) -> None:
    for copy in copies:
        inside = (copy["t1"] > -1) & (copy["t2"] > -1)
        t1, t2 = (copy[key][inside].numpy() for key in KEYS)
        # blurred, and its slices thick, one keeps less of the fine texture of the other
        assert -0.995 < np.corrcoef(t1, t2)[0, 1] < -0.3


def boxed(image: Tensor) -> Tensor:
    return image[tuple(slice(int(i.min()), int(i.max()) + 1) for i in torch.nonzero(image > -1, as_tuple=True))]


@pytest.mark.slow
def test_nothing_but_the_flip_remains_when_all_is_off() -> None:
    whole, seen = subject()["t1"], []
    for seed in range(4):
        found = boxed(augmented(seed, **PLAIN, **STILL)["t1"])
        assert found.shape == boxed(whole).shape
        inside = found > -1
        # the ends of the scale are found anew, which is a line within the brain
        alike = [np.corrcoef(found[inside], boxed(turned)[inside])[0, 1] for turned in (whole, whole.flip(1))]
        assert max(alike) > 0.99 > 0.5 > min(alike)
        seen.append(alike[0] > alike[1])
    assert set(seen) == {False, True}


def test_it_follows_from_the_seed(copies) -> None:
    again = augmented(1)
    assert torch.equal(again["t1"], copies[1]["t1"])
    assert torch.equal(again["t2"], copies[1]["t2"])
    assert copies[0]["t1"].shape != copies[1]["t1"].shape or not torch.equal(copies[0]["t1"], copies[1]["t1"])


def test_it_counts_in_the_identity_and_its_generator_does_not() -> None:
    step = AugmentSubjectd(KEYS)
    before = describe(step)
    step.set_random_state(5)
    step(subject())
    assert describe(step) == before
    assert describe(AugmentSubjectd(KEYS, noise=0.01)) != before
    assert describe(AugmentSubjectd(KEYS, intensity_scale="brain")) != before


def test_the_intensity_scale_is_kept() -> None:
    copy = augmented(2, intensity_scale="brain")["t1"]
    low, middle, high = np.percentile((copy[copy > -1].numpy() + 1) / 2, (10, 50, 90))
    # voxels that are clipped to the background are not counted here
    assert (middle, high - low) == pytest.approx((MEDIAN, SPREAD), abs=0.02)


def test_thick_slices_blur_along_one_axis() -> None:
    image = torch.rand((1, 24, 24, 24), generator=torch.Generator().manual_seed(0))
    step = RandThickSlicesd("image", (3.0, 3.0), prob=1.0)
    found = step.set_random_state(0)({"image": image})["image"]
    steps = sorted(float(found.diff(dim=axis).abs().mean()) for axis in (1, 2, 3))
    assert steps[0] < 0.5 * steps[1]
    assert float(found.mean()) == pytest.approx(float(image.mean()), abs=0.01)
    assert RandThickSlicesd("image", prob=0.0)({"image": image})["image"] is image
