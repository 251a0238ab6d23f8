"""Tests of custom.data.intensities: the named scales, and integers that have overflowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from custom.data.foreground import foreground, foreground_key
from custom.data.intensities import MEDIAN, PERCENTILE_ENDS, SPREAD, ScaleIntensitiesd, has_wrapped
from custom.data.preprocessing import preprocessing
from custom.data.readers import read_volume
from custom.utils.intensity_scales import INTENSITY_SCALES


def scan(seed: int = 0) -> np.ndarray:
    """A smooth brain of about 60 to 900 on a background of 0."""
    draw = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, 32),) * 3, indexing="ij")
    texture = ndimage.gaussian_filter(draw.normal(size=(32, 32, 32)), 2)
    inside = sum(g**2 for g in grid) < 1
    texture = (texture - texture[inside].min()) / np.ptp(texture[inside])
    return np.where(inside, 60 + 840 * texture, 0).astype(np.float32)


def scaled(values: np.ndarray, scale: str) -> MetaTensor:
    image = MetaTensor(torch.from_numpy(values.astype(np.float32))[None], meta={"filename_or_obj": "scan.nii.gz"})
    return ScaleIntensitiesd("image", scale)({"image": image, foreground_key("image"): foreground(image)})["image"]


CHANGES = {
    "affine": lambda v, m: 0.37 * v + 1234,
    "small": lambda v, m: v * 1e-6 - 1,
    "background of -1000": lambda v, m: np.where(m, v, -1000),
    "background of 450": lambda v, m: np.where(m, v, 450.5),
    "NaN around": lambda v, m: np.where(m, v, np.nan),
    "z-scores": lambda v, m: np.where(m, (v - v[m].mean()) / v[m].std(), 0),
    "z-scores of the volume": lambda v, m: (v - v.mean()) / v.std(),
}
# a raw scan's zero is 60 below its brain here, which ends at 900; where another background was put in, nothing tells it
UNKNOWN_ZERO = {"background of -1000", "background of 450", "NaN around", "z-scores"}


@pytest.mark.parametrize("scale", INTENSITY_SCALES)
@pytest.mark.parametrize("change", CHANGES)
def test_increasing_affine_maps_and_backgrounds_change_nothing(scale: str, change: str) -> None:
    values = scan()
    found, expected = (scaled(v, scale) for v in (CHANGES[change](values, values > 0), values))
    # of the range of 2: 0.001 for single precision with an offset
    tolerance = 2 * 60 / 650 if scale == "percentile" and change in UNKNOWN_ZERO else 1e-3
    assert float((found - expected).abs().max()) < tolerance


def test_the_percentiles_become_the_ends() -> None:
    values = scan()
    found = scaled(values, "percentile")
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    assert PERCENTILE_ENDS not in found.meta


def test_every_brain_has_its_median_and_deciles_in_one_place() -> None:
    for seed in range(3):
        values = scan(seed)
        found = (scaled(values**1.5, "brain")[0].numpy() + 1) / 2
        low, middle, high = np.percentile(found[values > 0], (10, 50, 90))
        assert (middle, high - low) == pytest.approx((MEDIAN, SPREAD), abs=1e-4)
        assert (found[values == 0] == 0).all()


def test_a_lesion_moves_the_percentiles_but_not_the_brain() -> None:
    """A lesion of 3 % of the brain, three times as bright as anything else in it."""
    values = scan()
    with_lesion = values.copy()
    with_lesion[14:20, 14:20, 14:20] = 2700
    healthy = (values > 0) & (with_lesion == values)
    moved = {
        s: float((scaled(with_lesion, s) - scaled(values, s))[0].numpy()[healthy].__abs__().mean())
        for s in INTENSITY_SCALES
    }
    assert moved["brain"] < 0.05 < 0.5 < moved["percentile"]


def test_the_ends_bring_the_brain_scale_to_the_percentiles() -> None:
    values = scan()
    image = scaled(values, "brain")
    low, high = image.meta[PERCENTILE_ENDS]
    found = np.clip(((image[0].numpy() + 1) / 2 - low) / (high - low), 0, 1)
    inside = values > 0
    np.testing.assert_allclose(found[inside], (scaled(values, "percentile")[0].numpy()[inside] + 1) / 2, atol=1e-5)


@pytest.mark.parametrize("scale", INTENSITY_SCALES)
def test_a_few_bright_voxels_are_refused(scale: str, write_volume) -> None:
    values = np.zeros((40, 40, 40), np.float32)
    values[2, 2, 2:32], values[37, 37, 37] = np.linspace(4.5, 9.25, 30), 7.3
    path = write_volume("sparse.nii.gz", values)
    with pytest.raises(RuntimeError) as caught:
        preprocessing("image", intensity_scale=scale)({"image": str(path)})
    assert "sparse.nii.gz: expected a brain" in str(caught.value.__cause__)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="intensity_scale: expected one of percentile, brain; found 'brian'"):
        preprocessing("image", intensity_scale="brian")


@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 330), (np.int16, 45000), (np.uint16, 80000), (np.int8, 180)])
def test_integers_that_overflowed_are_found(kind: type, top: int) -> None:
    values = scan() * top / 900
    assert not has_wrapped(values)
    assert not has_wrapped(np.clip(values, 0, np.iinfo(kind).max))
    assert has_wrapped(np.rint(values).astype(np.int64).astype(kind).astype(np.float32))


def test_an_overflow_is_found_where_few_of_the_values_of_a_type_occur() -> None:
    """An image of few whole numbers, as phantoms are, stretched to a wider type: no two values are neighbours."""
    values = np.rint(scan() / 9) * 600.5
    assert np.diff(np.unique(values)).min() > 1
    assert not has_wrapped(values)
    assert has_wrapped(values.astype(np.uint16).astype(np.int16).astype(np.float32))


@pytest.mark.parametrize("kind", ["noise", "checks", "spikes"])
def test_what_jumps_otherwise_has_not_overflowed(kind: str) -> None:
    draw, values = np.random.default_rng(0), scan()
    values = {
        "noise": draw.integers(0, 256, values.shape),
        "checks": np.where(values > 0, values + 400 * (np.indices(values.shape).sum(axis=0) % 2), 0),
        "spikes": np.where(draw.random(values.shape) < 1e-5, 30000, values),
    }[kind].astype(np.float32)
    assert not has_wrapped(values)


@pytest.mark.parametrize("modality", ["t1", "t1ce", "t2", "flair"])
def test_sharp_borders_are_no_overflow(brain, modality: str) -> None:
    """Of dark fluid and bright matter, which differ by most of the range."""
    for seed in range(4):
        values = brain(modality, seed).astype(np.float32)
        assert not has_wrapped(values)
        assert not has_wrapped(np.rint(values * (255 / values.max())))


def test_an_overflow_names_the_file(write_volume) -> None:
    path = write_volume("wrapped.nii.gz", np.rint(scan() * 0.37).astype(np.int64).astype(np.uint8))
    with pytest.raises(RuntimeError) as caught:
        preprocessing("image")({"image": str(path)})
    assert "wrapped.nii.gz: expected intensities that rise and fall smoothly" in str(caught.value.__cause__)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_brain_is_refused(write_volume, value: float) -> None:
    values = scan()
    values[16, 16, 16] = value
    path = write_volume("hole.nii.gz", values)
    with pytest.raises(RuntimeError) as caught:
        preprocessing("image")({"image": str(path)})
    assert "hole.nii.gz: expected finite intensities in the brain; found 1 NaN" in str(caught.value.__cause__)


def test_complex_numbers_are_refused(write_volume) -> None:
    path = write_volume("complex.nii.gz", (scan() * (1 + 1j)).astype(np.complex64))
    with pytest.raises(ValueError, match=r"complex\.nii\.gz: expected real intensities; found complex numbers"):
        read_volume(path)
