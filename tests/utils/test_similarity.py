"""Tests of custom.utils.similarity against MONAI's dense convolution."""

from __future__ import annotations

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from custom.utils.similarity import SSIM_SIGMA, SSIM_WINDOW, gaussian_band, ssim_map


def test_the_map_is_monais_where_the_window_lies_inside() -> None:
    image, truth = torch.rand(2, 2, 1, 14, 12, 17, generator=torch.Generator().manual_seed(0))
    expected = compute_ssim_and_cs(
        image, truth, 3, data_range=1.0, kernel_size=(SSIM_WINDOW,) * 3, kernel_sigma=(SSIM_SIGMA,) * 3
    )[0]
    found = ssim_map(image, truth)
    assert found.shape == image.shape
    # variances are differences of numbers near 1/3, which float32 knows to 1e-7, over variances near 1/12
    torch.testing.assert_close(found[..., 5:-5, 5:-5, 5:-5], expected, rtol=0, atol=1e-4)


def test_a_volume_too_small_for_symmetric_padding_is_refused() -> None:
    assert gaussian_band(5).sum(dim=1).allclose(torch.ones(5))
    with pytest.raises(ValueError, match="size: expected at least 5 voxels, half of SSIM's window; found 4"):
        gaussian_band(4)
