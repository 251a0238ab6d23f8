"""Tests of custom.evaluation.protocols and of the scores and sharpness that follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from custom.data.intensities import PERCENTILE_ENDS
from custom.evaluation.metrics import Reference
from custom.evaluation.protocols import ContrastEnds, ends_of, fitted, on_percentiles, standardising


def truth() -> torch.Tensor:
    grid = np.meshgrid(*(np.linspace(-1.3, 1.3, 26),) * 3, indexing="ij")
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(26, 26, 26)), 1.5)
    texture = 0.2 + 0.5 * (texture - texture.min()) / np.ptp(texture)
    return torch.from_numpy(np.where(sum(g**2 for g in grid) < 1, texture, 0)).float()


@pytest.mark.parametrize("rescaling", [standardising, fitted])
def test_a_line_is_undone(rescaling) -> None:
    values = np.random.default_rng(0).gamma(2, size=1000)
    slope, offset = rescaling(0.4 * values + 3, values)
    assert (slope, offset) == pytest.approx((2.5, -7.5), rel=1e-6)
    assert rescaling(np.full(1000, 2.0), values).slope == 0


def test_fitted_may_invert_and_standardising_may_not() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert fitted(-values, values).slope == pytest.approx(-1)
    assert standardising(-values, values).slope > 0


def test_a_wrong_brightness_is_forgiven_by_the_rescaled_scores_alone() -> None:
    image = truth()
    brain = image > 0
    lesion = brain & (image > 0.5)
    scores = Reference(image, brain=brain, lesion=lesion).score_rescaled(torch.where(brain, 0.7 * image + 0.2, image))
    assert set(scores) == {"volume"} | {
        f"{r}{n}" for r in ("brain", "lesion") for n in ("", " standardised", " fitted")
    }
    assert scores["brain"].psnr < 25
    for name in ("brain standardised", "brain fitted", "lesion standardised"):
        assert scores[name].psnr > 100
        assert scores[name].ssim == pytest.approx(1, abs=1e-5)


def test_sharpness_is_the_ratio_of_gradients_without_the_outline() -> None:
    image = truth()
    brain = image > 0
    reference = Reference(image, brain=brain)
    assert reference.score(image)["brain"].sharpness == pytest.approx(1)
    half = torch.where(brain, 0.5 * image, image)
    assert reference.score(half)["brain"].sharpness == pytest.approx(0.5, abs=1e-5)
    # another level inside the same outline has no other gradient
    shifted = torch.where(brain, image + 0.2, image)
    assert reference.score(shifted)["brain"].sharpness == pytest.approx(1, abs=1e-5)
    # of the brain alone, so that the background does not shine into it
    blurred, weight = (torch.from_numpy(ndimage.gaussian_filter(v.float().numpy(), 1.5)) for v in (image, brain))
    assert reference.score(torch.where(brain, blurred / weight, 0))["brain"].sharpness < 0.8
    assert reference.score(brain * 0.4)["brain"].sharpness == 0


def test_ends_of_the_training_bring_predictions_to_the_percentiles() -> None:
    ends = ContrastEnds(("t1", "t2"))
    assert ends.of("t1") is None
    for low, high in ((0.1, 0.7), (0.2, 0.9)):
        ends.update({"t1": MetaTensor(torch.zeros(1, 2, 2, 2), meta={PERCENTILE_ENDS: np.array([low, high])})})
    again = ContrastEnds.of_arrays(("t1", "t2"), ends.arrays())
    assert again.of("t1") == pytest.approx((0.15, 0.8))
    found = on_percentiles(torch.tensor([0.0, 0.1, 0.15, 0.475, 0.8, 1.0]), again.of("t1"))
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 0.5, 1, 1]))
    with pytest.raises(ValueError, match="t2: expected a training subject with this contrast"):
        again.of("t2")


def test_images_on_the_percentiles_stay_as_they_are() -> None:
    image = torch.rand(1, 3, 3, 3)
    assert ends_of(image) is None
    assert ends_of(MetaTensor(image)) is None
    assert on_percentiles(image, None) is image
